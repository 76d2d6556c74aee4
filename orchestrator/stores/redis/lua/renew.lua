-- needs: clock record
-- The lease, from now. ARGV: prefix, id, epoch, lease in ms, fenced.
local x = open(ARGV[2])
if not x then return { 'missing' } end
if ARGV[5] == '1' and (x.epoch ~= tonumber(ARGV[3]) or x.owner == '') then return { 'fenced', x.epoch } end
if x.state == 'FINISHED' then return { 'fenced', x.epoch } end
set(x, 'lease', tick() + tonumber(ARGV[4]))
call('ZADD', x.place, x.lease, x.id)
save(x)
return { 'ok' }
