-- The due sets and the bells. Needs: record.
local BELL = 64
local NEVER = math.huge

local function ring(x)
  local bell = P .. 'bell'
  if x.host ~= '' then bell = P .. 'bell:host:' .. x.host end
  call('RPUSH', bell, '1')
  call('LTRIM', bell, -BELL, -1)
end

-- A full bell says "look at all of yours". It expires: nobody listens to the bell of an owner long dead.
local function ring_owner(x)
  if x.owner == '' then return end
  local bell, token = P .. 'bell:' .. x.owner, x.id
  if call('LLEN', bell) >= BELL then
    call('DEL', bell)
    token = '*'
  end
  call('RPUSH', bell, token)
  call('EXPIRE', bell, 3600)
end

-- When an owner is next needed. Owned: the lease's end and nothing else, the owner runs its own timers.
local function due_at(x)
  if x.state == 'FINISHED' then return nil end
  if x.owner ~= '' then return x.lease end
  local at = x.ready
  if x.parked == 1 or (x.state == 'HIBERNATED' and at == 0) then at = NEVER end
  if x.deadline > 0 and x.deadline < at then at = x.deadline end
  return at
end

-- Puts its due member where and when the record says, and rings if somebody sleeping has to know.
local function settle(x, now)
  local at, place = due_at(x), place_of(x)
  if x.place ~= place then
    call('ZREM', x.place, x.id)
    x.place = place
  end
  if not at then
    call('ZREM', place, x.id)
    return
  end
  local first = call('ZRANGE', place, 0, 0, 'WITHSCORES')
  call('ZADD', place, at == NEVER and 'inf' or at, x.id)
  if x.owner == '' and at < NEVER and (at <= now or not first[1] or at < tonumber(first[2])) then ring(x) end
end

-- The concurrency of a tenant. A sleeping execution holds no place; one that wakes takes one without asking, because
-- an answer must not wait for other work: a tenant may so exceed its limit by those that woke.
local function take_place(x) call('ZADD', P .. 'index:active:' .. x.tenant, 0, x.id) end
local function unpark(id, now)
  local x = open(id)
  if not x or x.parked ~= 1 or x.state == 'FINISHED' then return false end
  set(x, 'parked', 0)
  set(x, 'ready', now)
  take_place(x)
  settle(x, now)
  save(x)
  return true
end
local function leave_place(x, now)
  call('ZREM', P .. 'parked:' .. x.tenant, x.id)
  if call('ZREM', P .. 'index:active:' .. x.tenant, x.id) == 0 then return end
  repeat
    local next = call('ZPOPMIN', P .. 'parked:' .. x.tenant)
  until not next[1] or unpark(next[1], now)
end
