-- Model calls: what they cost, in the record, and what was answered, in the hash `{id}:calls`, whose fields are
--   last            the number of the newest call
--   open            the calls under way, with blanks between
--   name:<name>     the call that goes by this name now. A name is "k <hash of key and digest>" or "d <digest> <k>"
--   call:<call>     how it stands, as JSON; body:<call> its recorded answer; bytes = of all of these
--   at:<attempt>:<digest>   how many of this digest that attempt has had whole: the next one's k
--   told, over      the budget whose `budget.exceeded` was written; the name that went over it
--   recovered       "<epoch> <how many>"
-- Money is a string wherever JSON could round it. Needs: record.
local SPEND = {
  'spent_micros', 'tokens_in', 'tokens_out', 'reserved_micros', 'reserved_tokens', 'calls', 'replays',
}

local GONE = 'the worker that made it is gone'

local function whole(number) return string.format('%.0f', number) end

local function open_purse(x)
  local got = call('HMGET', key(x.id, 'record'), 'budget', 'over_budget', unpack(SPEND))
  x.budget, x.over_budget = got[1] or '', got[2] or ''
  for i, name in ipairs(SPEND) do x[name] = tonumber(got[i + 2] or 0) end
end

local function spend_of(x)
  local told = {}
  for i, name in ipairs(SPEND) do told[i] = x[name] end
  return told
end

local function add(x, name, value) set(x, name, x[name] + tonumber(value)) end

local function open_calls(book)
  local names = {}
  for name in string.gmatch(call('HGET', book, 'open') or '', '%S+') do names[#names + 1] = name end
  return names
end

local function call_of(book, name)
  local text = name and call('HGET', book, 'call:' .. name)
  return text and cjson.decode(text) or nil
end

-- The reservation is given back; `used` is what is spent instead, nil = the provider was never reached.
local function end_call(x, book, name, of, state, used)
  add(x, 'reserved_micros', -tonumber(of.reserved[1]))
  add(x, 'reserved_tokens', -tonumber(of.reserved[2]))
  if used then
    add(x, 'spent_micros', used[1])
    add(x, 'tokens_in', used[2])
    add(x, 'tokens_out', used[3])
    set(x, 'calls', x.calls + 1)
  end
  of.state, of.if_cut, of.reserved = state, nil, nil
  call('HSET', book, 'call:' .. name, cjson.encode(of))
  local left = {}
  for _, other in ipairs(open_calls(book)) do
    if other ~= name then left[#left + 1] = other end
  end
  call('HSET', book, 'open', table.concat(left, ' '))
end

-- `used` is {micros, tokens in, tokens out, the tokens as JSON members}, `facts` JSON members with a comma before them.
local function usage_event(x, name, facts, used, replayed)
  event(x, 'usage', '{"call":"' .. name .. '"' .. facts .. ',' .. used[4]
    .. ',"cost_micros":' .. (replayed and '0' or used[1]) .. ',"replayed":' .. tostring(replayed) .. '}')
end

local function cut_call(x, book, name, of, used, why)
  end_call(x, book, name, of, 'cut', used)
  event(x, 'model.cut', '{"call":"' .. name .. '"' .. of.facts .. ',' .. used[4] .. ',"cost_micros":' .. used[1]
    .. ',"epoch":' .. of.epoch .. ',"why":' .. cjson.encode(why) .. '}')
end

-- What epochs before this one left under way counts as it was said to if it broke off. How many.
local function recover_calls(x, epoch, why)
  local book, count = key(x.id, 'calls'), 0
  for _, name in ipairs(open_calls(book)) do
    local of = call_of(book, name)
    if of.epoch < epoch then
      cut_call(x, book, name, of, of.if_cut, why)
      count = count + 1
    end
  end
  return count
end

-- Nobody will ask again: what is under way is settled, the recorded answers go.
local function close_calls(x)
  local book = key(x.id, 'calls')
  if call('HGET', book, 'open') then
    open_purse(x)
    recover_calls(x, math.huge, 'the execution has ended')
  end
  call('UNLINK', book)
end
