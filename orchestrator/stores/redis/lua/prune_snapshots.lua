-- needs: clock record snapshots
-- Members of one index of snapshots whose record is not there, or says otherwise. ARGV: prefix, the key, the field that
-- it goes by ('' = none, 'names' = its members have a name before the id), that field's value, members… Answers those
-- taken out.
local index, field, value = ARGV[2], ARGV[3], ARGV[4]
local gone = {}
for i = 5, #ARGV do
  local member = ARGV[i]
  local name, id = string.match(member, '^(.*)\t(.*)$')
  local s = snapshot_fields(id or member, 'tenant', 'host', 'name')
  local belongs = s ~= nil and (field == '' or field == 'names' or s[field] == value)
  if s and field == 'names' then belongs = s.tenant == value and s.name == name end
  if not belongs then
    call('ZREM', index, member)
    gone[#gone + 1] = id or member
  end
end
return { 'ok', gone }
