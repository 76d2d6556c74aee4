-- needs: clock record calls
-- What earlier epochs left under way is settled. ARGV: prefix, id, epoch, fenced.
local x = open(ARGV[2])
if not x then return { 'missing' } end
local epoch, book = tonumber(ARGV[3]), key(ARGV[2], 'calls')
if ARGV[4] == '1' and (x.epoch ~= epoch or x.owner == '') then return { 'fenced', x.epoch } end
if x.state == 'FINISHED' then return { 'fenced', x.epoch } end
local of, count = string.match(call('HGET', book, 'recovered') or '', '^(%d+) (%d+)$')
if tonumber(of) == epoch then return { 'ok', tonumber(count) } end
open_purse(x)
count = recover_calls(x, epoch, GONE)
if call('EXISTS', book) == 1 then call('HSET', book, 'recovered', epoch .. ' ' .. count) end
save(x)
return { 'ok', count }
