-- Fields of one hash whose value is the id of an execution that is not there. ARGV: prefix, the hash.
local all = call('HGETALL', ARGV[2])
local gone = {}
for i = 1, #all, 2 do
  if call('EXISTS', key(all[i + 1], 'record')) == 0 then
    call('HDEL', ARGV[2], all[i])
    gone[#gone + 1] = all[i + 1]
  end
end
return { 'ok', gone }
