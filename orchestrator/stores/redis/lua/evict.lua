-- needs: clock transitions record queue calls snapshots life
-- The attempt on a lost host is over. What follows was decided on the record of that epoch. ARGV: prefix, id, host,
-- epoch, then twice, for when no snapshot is archived and when one is: outcome as JSON ('' = another attempt), ms until
-- that attempt.
local x = open(ARGV[2])
if not x or x.host ~= ARGV[3] or x.state == 'FINISHED' then return { 'gone' } end
if x.epoch ~= tonumber(ARGV[4]) then return { 'changed' } end
local now = tick()
local from = newest_archived(x) or ''
local waits = x.state == 'QUEUED' or x.state == 'HIBERNATED'
-- Its files are on that host and nowhere else: what sleeps loses nothing by waiting for it, and what has nothing older to
-- begin from would lose all. Once it is woken, the newest that is archived will do.
if waits and x.snapshot_id ~= '' and (from == '' or (x.state == 'HIBERNATED' and from ~= x.snapshot_id)) then
  if x.owner == '' and end_unowned(x, now) then save(x) end
  return { 'kept' }
end
local outcome, after = ARGV[5], ARGV[6]
if from ~= '' then outcome, after = ARGV[7], ARGV[8] end
-- Whoever owned it there writes no more, however long it slept.
set(x, 'epoch', x.epoch + 1)
set(x, 'own', 0)
event(x, 'sandbox.lost', cjson.encode({ reason = 'host_lost', detail = ARGV[3], sandbox_id = x.sandbox_id, snapshot = from }))
set(x, 'host', '')
begin_from(x, from)
if waits then
  give_up(x, x.state == 'QUEUED' and x.ready == 0 and now or x.ready)
  settle(x, now)
elseif outcome ~= '' then
  finish(x, 'sandbox_abandoned', outcome, now)
else
  move(x, 'sandbox_lost')
  set(x, 'failures', x.failures + 1)
  set(x, 'not_before', now + tonumber(after))
  lie_down(x, x.not_before, now)
end
save(x)
return { 'ok' }
