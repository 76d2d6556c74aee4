-- The only way a state changes. Needs: clock, transitions, record, queue, calls.

local function in_index(x, state, present)
  if present then call('ZADD', P .. 'index:state:' .. state, 0, x.id)
  else call('ZREM', P .. 'index:state:' .. state, x.id) end
end

-- The transition and its one event, in one step. The caller has looked up that the table knows it.
local function move(x, trigger, data)
  local to = TRANSITIONS[x.state .. ' ' .. trigger]
  data = data or {}
  data['from'], data['to'], data['trigger'], data['attempt'] = x.state, to, trigger, x.attempt
  event(x, 'execution.state', cjson.encode(data))
  in_index(x, x.state, false)
  in_index(x, to, true)
  set(x, 'state', to)
  set(x, 'frozen', 0)
end

local function give_up(x, ready)
  set(x, 'owner', '')
  set(x, 'lease', 0)
  set(x, 'ready', ready)
end

-- A stream's last node is allocated at its full 4 KiB, which for a short history is most of what the execution takes.
-- One that sleeps or has ended is written anew at its real size; longer ones waste little.
local SHORT = 64
local function compact(x)
  for _, what in ipairs({ 'history', 'inbox' }) do
    local stream = key(x.id, what)
    local count = call('XLEN', stream)
    if count > 0 and count <= SHORT then call('RESTORE', stream, 0, call('DUMP', stream), 'REPLACE') end
  end
end

-- A list of wishes without that one.
local function without(x, name, id)
  if x[name] == '' then return end
  local left = {}
  for _, want in ipairs(cjson.decode(x[name])) do
    if want.id ~= id then left[#left + 1] = want end
  end
  set(x, name, #left > 0 and cjson.encode(left) or '')
end

-- Nothing will be cut any more, or not before it wakes: whoever waits for a snapshot is told so.
local function refuse_snapshots(x, why)
  if x.want_snapshots == '' then return end
  for _, want in ipairs(cjson.decode(x.want_snapshots)) do
    event(x, 'snapshot.failed', cjson.encode({ id = want.id, why = want.why, error = why }))
  end
  set(x, 'want_snapshots', '')
end

-- The sandbox is no longer its own: interrupts go with their attempt.
local function end_attempt(x)
  set(x, 'want_interrupts', '')
  if x.sandbox_id ~= '' then call('HDEL', P .. 'index:sandboxes', x.sandbox_id) end
end

-- Last event, end marker, outcome. `outcome` is JSON.
local function finish(x, trigger, outcome, now)
  close_calls(x)
  refuse_snapshots(x, 'it has ended')
  move(x, trigger)
  event(x, 'execution.finished', '{"outcome":' .. outcome .. '}')
  end_marker(x)
  end_attempt(x)
  give_up(x, 0)
  set(x, 'outcome', outcome)
  set(x, 'finished', wall())
  set(x, 'parked', 0)
  call('ZADD', P .. 'index:finished', x.finished, x.id)
  compact(x)
  settle(x, now)
  leave_place(x, now)
end

-- A wish to cancel, or a deadline, ends at once what nobody owns and has nothing to stop. True if it did.
local function end_unowned(x, now)
  if x.state ~= 'QUEUED' and x.state ~= 'HIBERNATED' then return false end
  if x.want_cancel ~= '' then
    local want = cjson.decode(x.want_cancel)
    finish(x, 'cancel', cjson.encode({ kind = 'CANCELLED', reason = 'cancelled', message = want.reason or '' }), now)
    return true
  end
  if x.deadline > 0 and x.deadline <= now then
    finish(x, 'deadline', cjson.encode({ kind = 'TIMED_OUT', reason = 'deadline', message = '' }), now)
    return true
  end
  return false
end

-- After it has become QUEUED or HIBERNATED: nobody's, its attempt over, due at `ready` (0 = when it is woken).
local function lie_down(x, ready, now)
  end_attempt(x)
  give_up(x, ready)
  if end_unowned(x, now) then return end
  if x.state == 'HIBERNATED' then
    refuse_snapshots(x, 'it sleeps: ' .. (x.snapshot_id ~= '' and x.snapshot_id or 'nothing') .. ' has its files as they are')
    compact(x)
    leave_place(x, now)
  else
    take_place(x)
  end
  settle(x, now)
end

-- HIBERNATED → QUEUED, due now.
local function wake(x, now)
  move(x, 'wake')
  lie_down(x, now, now)
end
