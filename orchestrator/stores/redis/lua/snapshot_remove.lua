-- needs: clock record snapshots
-- One snapshot's record, unless somebody is still to begin from it. ARGV: prefix, id.
local s = snapshot_fields(ARGV[2])
if not s then return { 'ok' } end
local by = needed_by(s)
if by then return { 'needed', by } end
drop_snapshot(s.id)
return { 'ok' }
