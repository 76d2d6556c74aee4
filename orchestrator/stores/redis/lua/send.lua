-- needs: clock transitions record queue calls life
-- A message into the inbox, once per id, with its receipt, and whoever has to know is told. ARGV: prefix, id, message
-- id, digest, mode, body, the receipt's data after `{"n":…`, most ids.
local x = open(ARGV[2])
if not x then return { 'missing' } end
local ids = key(x.id, 'inbox:ids')
local before = call('HGET', ids, ARGV[3])
if before then
  local n, seq, digest = string.match(before, '^(%d+) (%d+) (%S+)$')
  if digest ~= ARGV[4] then return { 'reused', tonumber(n) } end
  return { 'ok', tonumber(n), tonumber(seq), 1 }
end
if x.state == 'FINISHED' or x.state == 'STOPPING' then return { 'conflict', x.state } end
if call('HLEN', ids) >= tonumber(ARGV[8]) then return { 'full' } end

set(x, 'inbox_tail', x.inbox_tail + 1)
local n = x.inbox_tail
call('XADD', key(x.id, 'inbox'), n .. '-0', 'i', ARGV[3], 'm', ARGV[5], 't', wall(), 'b', ARGV[6])
event(x, 'message.accepted', '{"n":' .. n .. ARGV[7])
local seq = x.tail
call('HSET', ids, ARGV[3], n .. ' ' .. seq .. ' ' .. ARGV[4])
if x.owner ~= '' then
  ring_owner(x)
elseif x.state == 'HIBERNATED' then
  wake(x, tick())
end
save(x)
return { 'ok', n, seq, 0 }
