-- needs: clock record snapshots
-- Other words for one. ARGV: prefix, id, the name with = before it ('' = as it is), labels as JSON ('' = as they are).
local s = snapshot_fields(ARGV[2], 'tenant', 'name')
if not s then return { 'unknown' } end
if ARGV[3] ~= '' then
  local name, names = string.sub(ARGV[3], 2), snapshots_of('names', s.tenant)
  local other = name ~= '' and name_taken(s.tenant, name, s.id)
  if other then return { 'taken', other } end
  if s.name ~= '' then call('ZREM', names, s.name .. '\t' .. s.id) end
  if name ~= '' then call('ZADD', names, 0, name .. '\t' .. s.id) end
  call('HSET', snapshot_key(s.id), 'name', name)
end
if ARGV[4] ~= '' then call('HSET', snapshot_key(s.id), 'labels', ARGV[4]) end
return { 'ok', call('HGETALL', snapshot_key(s.id)) }
