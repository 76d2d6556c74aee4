-- needs: clock record
-- The history of one that has ended is elsewhere: it goes from here. ARGV: prefix, id.
local x = open(ARGV[2])
if not x then return { 'missing' } end
if x.state ~= 'FINISHED' then return { 'living', x.state } end
call('HSET', key(x.id, 'record'), 'history_archived', '1')
call('UNLINK', key(x.id, 'history'))
return { 'ok' }
