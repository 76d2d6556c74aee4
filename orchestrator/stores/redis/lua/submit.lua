-- needs: clock record queue intents snapshots
-- Record, first event and queue place in one step. ARGV: prefix, id, tenant, name, idempotency key, body digest,
-- deadline in ms ('' = none), most active of this tenant, most parked ('' = no limit), data of execution.submitted,
-- labels as "k=v" in JSON, the execution and the snapshot it is forked from ('' = neither), 1 = it takes over the name,
-- then the record's own field, value, …
local id, tenant, name, idem, digest = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local deadline, most_active, most_parked = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local parent, origin, rewind = ARGV[12], ARGV[13], ARGV[14] == '1'
local record, idem_key, name_field = key(id, 'record'), P .. 'idem:' .. tenant .. ':' .. idem, tenant .. '\t' .. name

local now = tick()
-- The same call again, after a lost reply: the id is the caller's own.
if call('EXISTS', record) == 1 then return { 'created', skew, call('HGETALL', record) } end
if idem ~= '' then
  local known = call('HMGET', idem_key, 'id', 'digest')
  if known[1] then
    if known[2] ~= digest then return { 'reused', known[1] } end
    local got = call('HGETALL', key(known[1], 'record'))
    if #got == 0 then return { 'removed', known[1] } end
    return { 'known', skew, got }
  end
end
local from = nil
if origin ~= '' then
  from = snapshot_fields(origin, 'tenant', 'seq', 'intents', 'host', 'archived')
  if not from or from.tenant ~= tenant or from.execution ~= parent then return { 'unknown', origin } end
  -- Without its record there is no journal any more that says what was done by then.
  local state = call('HGET', key(parent, 'record'), 'state')
  if not state then return { 'orphan' } end
  if rewind and state ~= 'FINISHED' then return { 'living', state } end
end
-- A name that moves takes the next generation: a cursor into the history of before is never one into this.
local holder, generation = name ~= '' and call('HGET', P .. 'names', name_field), 1
if holder then
  local had = call('HMGET', key(holder, 'record'), 'state', 'generation')
  if had[1] and had[1] ~= 'FINISHED' then return { 'taken', holder } end
  if had[1] then generation = tonumber(had[2] or 1) + 1 else holder = nil end
end
local parked = most_active and call('ZCARD', P .. 'index:active:' .. tenant) >= most_active
if parked and most_parked and call('ZCARD', P .. 'parked:' .. tenant) >= most_parked then
  return { 'full', most_parked }
end

local fields = { 'id', id, 'state', 'QUEUED', 'tenant', tenant, 'name', name, 'created', wall(), 'ready', now, 'generation', generation,
  'deadline', deadline and now + deadline or 0, 'parked', parked and 1 or 0 }
for i = 15, #ARGV do fields[#fields + 1] = ARGV[i] end
if holder then
  fields[#fields + 1] = 'before'
  fields[#fields + 1] = holder
end
call('HSET', record, unpack(fields))
local x = open(id)
event(x, 'execution.submitted', ARGV[10])
if from then
  event(x, 'execution.forked', cjson.encode({
    from = parent, snapshot = origin, seq = tonumber(from.seq) or 0, rewind = rewind,
  }))
  copy_intents(parent, x, tonumber(from.intents) or 0, tonumber(from.seq) or 0)
  begin_from(x, origin)
  set(x, 'descends', parent)
  call('ZADD', P .. 'index:forks:' .. parent, 0, id)
  if from.archived ~= '1' then set(x, 'host', from.host) end
end
if parked then call('ZADD', P .. 'parked:' .. tenant, now, id) else take_place(x) end
settle(x, now)
save(x)
if idem ~= '' then
  call('HSET', idem_key, 'id', id, 'digest', digest)
  call('EXPIRE', idem_key, 604800)
end
if name ~= '' then call('HSET', P .. 'names', name_field, id) end
call('ZADD', P .. 'index:all', 0, id)
call('ZADD', P .. 'index:tenant:' .. tenant, 0, id)
call('ZADD', P .. 'index:state:QUEUED', 0, id)
for _, label in ipairs(cjson.decode(ARGV[11])) do
  call('ZADD', P .. 'index:label:' .. tenant .. ':' .. label, 0, id)
end
return { 'created', skew, call('HGETALL', record) }
