-- needs: clock record snapshots
-- What became known of one: fields as they are to be. ARGV: prefix, id, field, value, …
if not snapshot_fields(ARGV[2]) then return { 'unknown' } end
call('HSET', snapshot_key(ARGV[2]), unpack(ARGV, 3))
return { 'ok' }
