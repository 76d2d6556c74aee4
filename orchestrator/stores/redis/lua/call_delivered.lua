-- needs: clock record calls
-- The client has the whole answer: the next of this digest in this attempt is another one. ARGV: prefix, id, epoch,
-- fenced, attempt, call.
local x = open(ARGV[2])
if not x then return { 'missing' } end
if ARGV[4] == '1' and (x.epoch ~= tonumber(ARGV[3]) or x.owner == '') then return { 'fenced', x.epoch } end
if x.state == 'FINISHED' then return { 'fenced', x.epoch } end
local book = key(x.id, 'calls')
local of = call_of(book, ARGV[6])
if not of then return { 'unknown' } end
if of.k then
  local at = 'at:' .. ARGV[5] .. ':' .. of.digest
  if of.k + 1 > tonumber(call('HGET', book, at) or 0) then call('HSET', book, at, of.k + 1) end
end
return { 'ok' }
