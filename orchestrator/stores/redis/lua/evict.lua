-- needs: clock transitions record queue calls life
-- The attempt on a lost host is over. What follows was decided on the record of that epoch. ARGV: prefix, id, host,
-- epoch, outcome as JSON ('' = another attempt), ms until that attempt.
local x = open(ARGV[2])
if not x or x.host ~= ARGV[3] or x.state == 'FINISHED' then return { 'gone' } end
if x.epoch ~= tonumber(ARGV[4]) then return { 'changed' } end
local now = tick()
-- Whoever owned it there writes no more, however long it slept.
set(x, 'epoch', x.epoch + 1)
set(x, 'own', 0)
event(x, 'sandbox.lost', cjson.encode({ reason = 'host_lost', detail = ARGV[3], sandbox_id = x.sandbox_id }))
set(x, 'host', '')
if x.state == 'QUEUED' or x.state == 'HIBERNATED' then
  give_up(x, x.state == 'QUEUED' and x.ready == 0 and now or x.ready)
  settle(x, now)
elseif ARGV[5] ~= '' then
  finish(x, 'sandbox_abandoned', ARGV[5], now)
else
  move(x, 'sandbox_lost')
  set(x, 'failures', x.failures + 1)
  set(x, 'not_before', now + tonumber(ARGV[6]))
  lie_down(x, x.not_before, now)
end
save(x)
return { 'ok' }
