-- The journal of intents: the hash `{id}:intents`, whose fields are i:<key> = the intent as JSON, r:<key> = its result,
-- bytes = of both, unsettled = how many nobody knows the end of, should the attempt be over; `at` in it is the seq of its
-- last event; and the list `{id}:intents:order` of its keys. Needs: record.
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

-- The first `upto` intents of another journal, as they stood at that event. One that changed later had been begun by then
-- and not ended: its effect outside may be there, what it wrote into the files is not. What they say is read and
-- changed in their text (a quote within a value is escaped, so these can only be members): decoding a long journal would
-- hold the server for seconds.
local AT_ONCE = 200
local function said(text, member) return string.find(text, member, 1, true) ~= nil end

local function copy_intents(from, x, upto, seq)
  local theirs, journal, order = key(from, 'intents'), key(x.id, 'intents'), key(x.id, 'intents:order')
  local size, unknown = 0, 0
  for first = 0, upto - 1, AT_ONCE do
    local names = call('LRANGE', key(from, 'intents:order'), first, math.min(first + AT_ONCE, upto) - 1)
    if #names == 0 then break end
    local fields, values = {}, {}
    for _, name in ipairs(names) do
      fields[#fields + 1] = 'i:' .. name
      fields[#fields + 1] = 'r:' .. name
    end
    local got = call('HMGET', theirs, unpack(fields))
    for i = 1, #fields, 2 do
      local text, result = got[i], got[i + 1] or ''
      if tonumber(string.match(text, '"at":(%d+)') or 0) > seq then
        local of = cjson.decode(text)
        of.state, of.ended, of.by, of.decision, of.nonce, result = 'open', nil, nil, nil, nil, ''
        text = cjson.encode(of)
      end
      if said(text, '"state":"open"') then
        text = string.gsub(text, '"attempt":%d+', '"attempt":0', 1) -- of no attempt of this one
        if not said(text, '"effect":"none"') and not said(text, '"effect":"idempotent"') then unknown = unknown + 1 end
      elseif said(text, '"state":"in_doubt"') then
        unknown = unknown + 1
      end
      text = string.gsub(text, '"at":%d+', '"at":0', 1) -- before its first event
      values[#values + 1] = fields[i]
      values[#values + 1] = text
      if result ~= '' then
        values[#values + 1] = fields[i + 1]
        values[#values + 1] = result
      end
      size = size + #text + #result
    end
    call('HSET', journal, unpack(values))
    call('RPUSH', order, unpack(names))
  end
  if size > 0 then call('HSET', journal, 'bytes', size, 'unsettled', unknown) end
end
