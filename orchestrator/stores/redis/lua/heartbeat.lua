-- needs: clock
-- A worker lives on a host. Workers not heard of for ten minutes are forgotten. ARGV: prefix, host, worker, facts,
-- then of each counter its name and what to add.
local now = tick()
call('HSET', P .. 'hosts', ARGV[2], cjson.encode({ seen = now, facts = cjson.decode(ARGV[4]) }))
call('HSET', P .. 'workers', 'seen:' .. ARGV[3], now .. ' ' .. ARGV[2])
for i = 5, #ARGV, 2 do call('HINCRBY', P .. 'counters', ARGV[i], ARGV[i + 1]) end
local all = call('HGETALL', P .. 'workers')
for i = 1, #all, 2 do
  local name, seen = string.match(all[i], '^seen:(.*)$'), string.match(all[i + 1], '^%d+')
  if name and tonumber(seen) < now - 600000 then call('HDEL', P .. 'workers', 'seen:' .. name, 'claim:' .. name) end
end
return { 'ok' }
