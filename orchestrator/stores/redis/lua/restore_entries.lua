-- Entries of a stream, or of a list, put behind what is there: those that are there already are passed over, the call
-- may come twice. ARGV: prefix, the key, stream | list, how many parts each has; of a list its place (how long it is
-- without these); then the parts. Of a stream the first part is the id, `<n>-<m>`.
local at, kind, parts = ARGV[2], ARGV[3], tonumber(ARGV[4])
if kind == 'list' then
  local skip = call('LLEN', at) - tonumber(ARGV[5])
  for i = 6 + skip, #ARGV do call('RPUSH', at, ARGV[i]) end
  return { 'ok' }
end
local newest = call('XREVRANGE', at, '+', '-', 'COUNT', 1)
local last, last_m = -1, -1
if newest[1] then
  last, last_m = string.match(newest[1][1], '^(%d+)-(%d+)$')
  last, last_m = tonumber(last), tonumber(last_m)
end
for i = 5, #ARGV, parts do
  local n, m = string.match(ARGV[i], '^(%d+)-(%d+)$')
  n, m = tonumber(n), tonumber(m)
  if n > last or (n == last and m > last_m) then call('XADD', at, unpack(ARGV, i, i + parts - 1)) end
end
return { 'ok' }
