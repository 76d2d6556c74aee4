-- needs: clock record queue snapshots
-- One is whole in the archive, or is not any more. Whoever waits for its host only to begin from it needs that no more.
-- ARGV: prefix, id, 1 = it is.
local s = snapshot_fields(ARGV[2], 'host')
if not s then return { 'unknown' } end
if ARGV[3] ~= '1' then
  call('HDEL', snapshot_key(s.id), 'archived')
  return { 'ok' }
end
call('HSET', snapshot_key(s.id), 'archived', '1')
local now
for _, id in ipairs(call('ZRANGE', snapshots_of('begins', s.id), 0, -1)) do
  local x = open(id)
  if x and x.state == 'QUEUED' and x.owner == '' and x.sandbox_id == '' and x.snapshot_id == s.id and x.host == s.host then
    now = now or tick()
    set(x, 'host', '')
    settle(x, now)
    save(x)
  end
end
return { 'ok' }
