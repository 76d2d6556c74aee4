-- needs: clock transitions record queue calls life
-- Given up untouched, due at once for any worker of its host. ARGV: prefix, id, epoch, fenced.
local x = open(ARGV[2])
if not x then return { 'missing' } end
if ARGV[4] == '1' and x.epoch ~= tonumber(ARGV[3]) then return { 'fenced', x.epoch } end
if x.owner == '' then return { 'ok' } end
local now = tick()
give_up(x, now)
if not end_unowned(x, now) then settle(x, now) end
save(x)
return { 'ok' }
