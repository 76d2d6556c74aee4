-- needs: clock stream
-- Remove a stream, or keep it out of reach while forks need it. ARGV: prefix, name.
local x = find(ARGV[2], wall())
if not x then return { 'missing' } end
if x.deleted == '1' then return { 'removed' } end
remove(x)
return { 'ok' }
