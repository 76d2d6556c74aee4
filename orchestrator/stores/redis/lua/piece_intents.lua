-- The journal of intents: the hash `{id}:intents`, whose fields are i:<key> = the intent as JSON, r:<key> = its result,
-- bytes = of both; `at` in it is the seq of its last event; and the list `{id}:intents:order` of its keys. Needs: record.
local function repeatable(effect) return effect == 'none' or effect == 'idempotent' end

local function intent_of(journal, name)
  local text = call('HGET', journal, 'i:' .. name)
  return text and cjson.decode(text) or nil
end

-- result nil = as it is.
local function put_intent(journal, name, of, result)
  local text, before = cjson.encode(of), call('HMGET', journal, 'i:' .. name, 'r:' .. name)
  local size = #text - #(before[1] or '')
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

-- The first `upto` intents of another journal, as they stood at that event. One that changed later had been begun by then
-- and not ended: its effect outside may be there, what it wrote into the files is not.
local function copy_intents(from, x, upto, seq)
  if upto < 1 then return end
  local theirs, journal, order = key(from, 'intents'), key(x.id, 'intents'), key(x.id, 'intents:order')
  local names, size = call('LRANGE', key(from, 'intents:order'), 0, upto - 1), 0
  for _, name in ipairs(names) do
    local text, result = told_intent(theirs, name)
    local of = cjson.decode(text)
    if (of.at or 0) > seq then
      of.state, of.ended, of.by, of.decision, of.nonce, result = 'open', nil, nil, nil, nil, ''
    end
    of.attempt, of.at = 0, 0 -- of no attempt of this one, and before its first event
    text = cjson.encode(of)
    call('RPUSH', order, name)
    call('HSET', journal, 'i:' .. name, text)
    if result ~= '' then call('HSET', journal, 'r:' .. name, result) end
    size = size + #text + #result
  end
  if size > 0 then call('HSET', journal, 'bytes', size) end
end
