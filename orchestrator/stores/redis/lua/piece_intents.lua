-- The journal of intents: the hash `{id}:intents`, whose fields are i:<key> = the intent as JSON, r:<key> = its result,
-- bytes = of both, unsettled = how many nobody knows the end of, should the attempt be over; and the list
-- `{id}:intents:order` of its keys. Needs: record.
local function repeatable(effect) return effect == 'none' or effect == 'idempotent' end

local function unsettled(of)
  if of.state == 'in_doubt' or (of.state == 'open' and not repeatable(of.effect)) then return 1 end
  return 0
end

local function intent_of(journal, name)
  local text = call('HGET', journal, 'i:' .. name)
  return text and cjson.decode(text) or nil
end

-- result nil = as it is.
local function put_intent(journal, name, of, result)
  local text, before = cjson.encode(of), call('HMGET', journal, 'i:' .. name, 'r:' .. name)
  local size = #text - #(before[1] or '')
  local more = unsettled(of) - (before[1] and unsettled(cjson.decode(before[1])) or 0)
  if more ~= 0 then call('HINCRBY', journal, 'unsettled', more) end
  call('HSET', journal, 'i:' .. name, text)
  if result then
    size = size + #result - #(before[2] or '')
    if result == '' then call('HDEL', journal, 'r:' .. name) else call('HSET', journal, 'r:' .. name, result) end
  end
  call('HINCRBY', journal, 'bytes', size)
end

local function told_intent(journal, name)
  local got = call('HMGET', journal, 'i:' .. name, 'r:' .. name)
  return got[1], got[2] or ''
end

-- An open one whose attempt is over is in doubt, though nobody has asked for it yet.
local function in_doubt(x, of)
  if of.state == 'in_doubt' then return true end
  local over = of.attempt < x.attempt
    or x.state == 'QUEUED' or x.state == 'HIBERNATED' or x.state == 'FINISHED'
  return of.state == 'open' and over and not repeatable(of.effect)
end
