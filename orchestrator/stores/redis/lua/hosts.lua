-- needs: clock
-- Who has been heard of, and when. ARGV: prefix.
local now = tick()
return { 'ok', skew, now, call('HGETALL', P .. 'hosts'), call('HGETALL', P .. 'workers') }
