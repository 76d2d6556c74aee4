-- needs: clock record queue
-- Members of one index that do not belong there. ARGV: prefix, kind (due state parked other), the key, the state or '',
-- id, … Answers the ids taken out.
local kind, index, state = ARGV[2], ARGV[3], ARGV[4]
local gone = {}
for i = 5, #ARGV do
  local id = ARGV[i]
  local x = open(id)
  local belongs = x ~= nil
  if x and kind == 'due' then belongs = x.place == index and due_at(x) ~= nil end
  if x and kind == 'state' then belongs = x.state == state end
  if x and kind == 'parked' then belongs = x.parked == 1 end
  if not belongs then
    call('ZREM', index, id)
    gone[#gone + 1] = id
  end
end
return { 'ok', gone }
