-- needs: clock record snapshots
-- Where these snapshots stand in the indexes, made what their records say. ARGV: prefix, id, … Answers what was wrong:
-- id, detail, …
local found = {}
local function stand(index, score, member, id)
  if call('ZSCORE', index, member) then return end
  call('ZADD', index, score, member)
  found[#found + 1] = id
  found[#found + 1] = 'added to ' .. string.sub(index, #P + 1)
end
for i = 2, #ARGV do
  local id = ARGV[i]
  local s = snapshot_fields(id, 'tenant', 'host', 'name', 'n')
  if s then
    stand(P .. 'index:snapshots:all', 0, id, id)
    stand(snapshots_of('tenant', s.tenant), 0, id, id)
    stand(snapshots_of('of', s.execution), tonumber(s.n) or 0, id, id)
    stand(snapshots_of('host', s.host), 0, id, id)
    if s.name ~= '' then stand(snapshots_of('names', s.tenant), 0, s.name .. '\t' .. id, id) end
  end
end
return { 'ok', found }
