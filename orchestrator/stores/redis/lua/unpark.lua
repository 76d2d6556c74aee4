-- needs: clock record queue
-- Those for whom there is a place now: the limit was raised, or a release got lost. ARGV: prefix, tenant, most ('' = no
-- limit).
local tenant, most = ARGV[2], tonumber(ARGV[3])
local now = tick()
local released = {}
while #released < 100 and (not most or call('ZCARD', P .. 'index:active:' .. tenant) < most) do
  local next = call('ZPOPMIN', P .. 'parked:' .. tenant)
  if not next[1] then break end
  if unpark(next[1], now) then released[#released + 1] = next[1] end
end
return { 'ok', released }
