-- needs: clock record snapshots
-- One snapshot's record, unless somebody is still to begin from it; its execution's history says so where that goes on.
-- ARGV: prefix, id, why.
local s = snapshot_fields(ARGV[2], 'name')
if not s then return { 'ok' } end
local by = needed_by(s)
if by then return { 'needed', by } end
local x = open(s.execution)
if x and x.state ~= 'FINISHED' then
  event(x, 'snapshot.removed', cjson.encode({ id = s.id, name = s.name, why = ARGV[3] }))
  save(x)
end
drop_snapshot(s.id)
return { 'ok' }
