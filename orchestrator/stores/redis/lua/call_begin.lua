-- needs: clock record queue calls
-- Answered before, or reserved now, or more than the budget. ARGV: prefix, id, epoch, fenced, attempt, name ('' = the
-- digest and how many of it this attempt has had), digest, most micros, most tokens, if cut: micros, tokens in, tokens
-- out, tokens as JSON; facts as JSON, a nonce: the same call again (a lost reply) is no second replay.
-- A name is not begun twice at once, so one under way in this epoch is the same call again.
local x = open(ARGV[2])
if not x then return { 'missing' } end
local epoch, digest, facts = tonumber(ARGV[3]), ARGV[7], ARGV[14]
if ARGV[4] == '1' and (x.epoch ~= epoch or x.owner == '') then return { 'fenced', x.epoch } end
if x.state == 'FINISHED' then return { 'fenced', x.epoch } end
open_purse(x)
local book, name, k = key(x.id, 'calls'), ARGV[6], nil
if name == '' then
  k = tonumber(call('HGET', book, 'at:' .. ARGV[5] .. ':' .. digest) or 0)
  name = 'd ' .. digest .. ' ' .. k
end
local before = call('HGET', book, 'name:' .. name)
local known = call_of(book, before)

if known and known.state == 'recorded' then
  if known.nonce ~= ARGV[15] then
    known.nonce = ARGV[15]
    call('HSET', book, 'call:' .. before, cjson.encode(known))
    set(x, 'replays', x.replays + 1)
    usage_event(x, before, facts, known.used, true)
    save(x)
  end
  return { 'replay', before, call('HGET', book, 'body:' .. before) }
end
if known and known.state == 'open' then
  if known.epoch == epoch then return { 'reserved', before, spend_of(x) } end
  cut_call(x, book, before, known, known.if_cut, GONE)
end

local budget = x.budget ~= '' and cjson.decode(x.budget) or {}
local micros, tokens = tonumber(ARGV[8]), tonumber(ARGV[9])
local spent_tokens = x.tokens_in + x.tokens_out
local excess, told = {}, {}
for _, of in ipairs({
  { 'micros', x.spent_micros, x.reserved_micros, micros, budget.micros },
  { 'tokens', spent_tokens, x.reserved_tokens, tokens, budget.tokens },
}) do
  local unit, spent, reserved, needed, limit = unpack(of, 1, 5)
  told[#told + 1] = '"spent_' .. unit .. '":' .. whole(spent) .. ',"reserved_' .. unit .. '":' .. whole(reserved)
    .. ',"needed_' .. unit .. '":' .. whole(needed) .. ',"limit_' .. unit .. '":' .. (limit and whole(limit) or 'null')
  if limit and spent + reserved + needed > limit then
    excess[#excess + 1] = whole(spent) .. ' ' .. unit .. ' spent, ' .. whole(reserved) .. ' reserved, '
      .. whole(needed) .. ' needed, the limit is ' .. whole(limit)
  end
end
if #excess > 0 then
  local wait = budget.on_exceeded == 'wait'
  if call('HGET', book, 'told') ~= x.budget then
    call('HSET', book, 'told', x.budget)
    event(x, 'budget.exceeded', '{' .. table.concat(told, ',') .. ',"on_exceeded":"' .. (wait and 'wait' or 'fail')
      .. '"' .. facts .. '}')
  end
  if x.over_budget == '' then
    set(x, 'over_budget', table.concat(excess, '; '))
    call('HSET', book, 'over', name)
    ring_owner(x)
  end
  save(x)
  return { 'over', spend_of(x), micros, tokens, budget.micros or false, budget.tokens or false, wait and 1 or 0 }
end

-- It was held because of others under way, and has room now that they have ended.
if x.over_budget ~= '' and budget.on_exceeded == 'wait' and call('HGET', book, 'over') == name then
  set(x, 'over_budget', '')
  ring_owner(x)
end
if before then call('HDEL', book, 'call:' .. before) end
local made = 'c' .. call('HINCRBY', book, 'last', 1)
local under_way = open_calls(book)
under_way[#under_way + 1] = made
call('HSET', book, 'open', table.concat(under_way, ' '), 'name:' .. name, made, 'call:' .. made, cjson.encode({
  state = 'open', epoch = epoch, digest = digest, k = k, facts = facts, reserved = { ARGV[8], ARGV[9] },
  if_cut = { ARGV[10], ARGV[11], ARGV[12], ARGV[13] },
}))
add(x, 'reserved_micros', micros)
add(x, 'reserved_tokens', tokens)
save(x)
return { 'reserved', made, spend_of(x) }
