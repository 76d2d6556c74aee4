-- needs: clock transitions record queue calls snapshots life
-- What was alive when its backup was taken takes its place: nobody's, its attempt over, under a new generation and an
-- epoch that whoever had it since cannot have. ARGV: prefix, the backup, id, the backup's skew in ms, when it was taken
-- (RFC 3339), how far the epoch rises, ms until it is due, outcome as JSON ('' = another attempt).
local id, backup = ARGV[3], ARGV[2]
local waiting, record = key(id, 'restored'), key(id, 'record')
if call('EXISTS', waiting) == 0 then return { 'gone' } end
local now = tick()
call('HSET', waiting, 'restored_from', backup)
call('RENAME', waiting, record)
local x = open(id)
-- A moment of the logical clock it was written by is one of ours.
local shift = tonumber(ARGV[4]) - skew
for _, name in ipairs({ 'deadline', 'ready', 'not_before' }) do
  if x[name] > 0 then set(x, name, math.max(1, x[name] + shift)) end
end
local from = x.snapshot_id
if from ~= '' and not snapshot_fields(from) then
  from = call('ZREVRANGE', snapshots_of('of', id), 0, 0)[1] or ''
end
x.snapshot_id = '' -- its places among those that begin from a snapshot are not there yet
begin_from(x, from)
x.changed.snapshot_id = true
local before = x.generation
set(x, 'generation', before + 1)
set(x, 'epoch', x.epoch + tonumber(ARGV[6]))
set(x, 'own', 0)
event(x, 'execution.restored', cjson.encode({
  taken_at = ARGV[5], generation_before = before, state = x.state, attempt = x.attempt, snapshot = from,
}))
open_purse(x)
recover_calls(x, math.huge, 'its answer came after the backup it was restored from')
refuse_snapshots(x, 'it was restored from a backup')
set(x, 'want_hibernate', '')
local due = now + tonumber(ARGV[7])
local waits = x.state == 'QUEUED' or x.state == 'HIBERNATED'
-- What lies on a host by this name is younger than the history: the next attempt begins from a snapshot.
if not waits then event(x, 'sandbox.lost', cjson.encode({ reason = 'restored', detail = ARGV[5], sandbox_id = x.sandbox_id, snapshot = from })) end
end_attempt(x)
set(x, 'sandbox_id', '')
if from ~= '' then
  local of = snapshot_fields(from, 'host', 'archived')
  set(x, 'host', of.archived == '1' and '' or of.host)
else
  set(x, 'host', '')
end
if waits then
  give_up(x, x.state == 'QUEUED' and math.max(x.ready, due) or x.ready)
  if not end_unowned(x, now) then settle(x, now) end
elseif ARGV[8] ~= '' then
  finish(x, 'sandbox_abandoned', ARGV[8], now)
else
  move(x, 'sandbox_lost')
  set(x, 'not_before', due)
  lie_down(x, due, now)
end
save(x)
return { 'ok', x.state }
