-- needs: clock transitions record queue calls life
-- The lowest due member ≤ now, of this host or of any: epoch + 1, owner, lease. ARGV: prefix, owner, host, lease in ms,
-- a nonce: the same call again (a lost reply) gets the same claim again; 1 = only what has a sandbox on this host.
local owner, host, lease, nonce, adopt_only = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1'
local now = tick()
if restoring then return { 'nothing', -1 } end
local mine = 'claim:' .. owner

local before = call('HGET', P .. 'workers', mine)
if before then
  local id, epoch, of = string.match(before, '^(%S+) (%d+) (%S+)$')
  local x = of == nonce and open(id)
  if x and x.epoch == tonumber(epoch) and x.owner == owner then
    return { 'claimed', skew, now, id, call('HGETALL', key(id, 'record')) }
  end
end

local places = { P .. 'due:host:' .. host, P .. 'due:any' }
local function lowest()
  local id, place, at
  for _, candidate in ipairs(places) do
    local first = call('ZRANGE', candidate, 0, 0, 'WITHSCORES')
    if first[1] and (not at or tonumber(first[2]) < at) then id, place, at = first[1], candidate, tonumber(first[2]) end
  end
  return id, place, at
end

local function taken(x)
  set(x, 'epoch', x.epoch + 1)
  set(x, 'own', 0)
  if x.state == 'HIBERNATED' then wake(x, now) end
  -- QUEUED stays QUEUED: the owner's first append places the sandbox and makes it STARTING in one step, so that
  -- STARTING always means that the record names this attempt's sandbox.
  if x.state ~= 'QUEUED' then
    event(x, 'execution.adopted', cjson.encode({ owner = owner, epoch = x.epoch }))
  end
  set(x, 'owner', owner)
  set(x, 'lease', now + lease)
  set(x, 'ready', 0)
  set(x, 'not_before', 0)
  settle(x, now)
  save(x)
  call('HSET', P .. 'workers', mine, x.id .. ' ' .. x.epoch .. ' ' .. nonce)
  return { 'claimed', skew, now, x.id, call('HGETALL', key(x.id, 'record')) }
end

-- What is queued stays where it is, however long: looked for among those that live, of which there are few.
if adopt_only then
  for _, state in ipairs({ 'STARTING', 'RUNNING', 'PAUSED', 'HIBERNATING', 'STOPPING' }) do
    for _, id in ipairs(call('ZRANGE', P .. 'index:state:' .. state, 0, -1)) do
      local x = open(id)
      if x and x.host == host and x.state == state and due_at(x) <= now then return taken(x) end
    end
  end
  for _, place in ipairs(places) do -- a deadline needs no room
    for _, id in ipairs(call('ZRANGEBYSCORE', place, '-inf', now, 'LIMIT', 0, 64)) do
      local x = open(id)
      if x and x.owner == '' and end_unowned(x, now) then save(x) end
    end
  end
  return { 'nothing', -1 }
end

-- Bounded, so that a heap of stale members cannot hold the server: the rest is for the next claim.
for _ = 1, 64 do
  local id, place, at = lowest()
  if not id or at > now then
    return { 'nothing', (id and at < NEVER) and at - now or -1 }
  end
  local x = open(id)
  if not x then
    call('ZREM', place, id)
  elseif place ~= x.place or due_at(x) == nil or due_at(x) > now then
    call('ZREM', place, id)
    settle(x, now)
  elseif not end_unowned(x, now) then
    local claimed = taken(x)
    local _, _, next = lowest()
    if next and next <= now then
      call('RPUSH', P .. 'bell', '1')
      call('LTRIM', P .. 'bell', -BELL, -1)
    end
    return claimed
  end
  if x then save(x) end
end
return { 'nothing', 0 }
