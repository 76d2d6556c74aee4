-- needs: clock transitions record queue calls life
-- The lowest due member ≤ now, of this host or of any: epoch + 1, owner, lease. ARGV: prefix, owner, host, lease in ms,
-- a nonce: the same call again (a lost reply) gets the same claim again.
local owner, host, lease, nonce = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
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
    call('HSET', P .. 'workers', mine, id .. ' ' .. x.epoch .. ' ' .. nonce)
    local _, _, next = lowest()
    if next and next <= now then
      call('RPUSH', P .. 'bell', '1')
      call('LTRIM', P .. 'bell', -BELL, -1)
    end
    return { 'claimed', skew, now, id, call('HGETALL', key(id, 'record')) }
  end
  if x then save(x) end
end
return { 'nothing', 0 }
