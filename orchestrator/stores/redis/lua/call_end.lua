-- needs: clock record calls
-- How one call ended; the first end counts. ARGV: prefix, id, epoch, fenced, call, how (finish cut cancel), used: micros,
-- tokens in, tokens out, tokens as JSON; facts as JSON, why it was cut, its answer ('' = not recorded), most bytes of
-- answers.
local x = open(ARGV[2])
if not x then return { 'missing' } end
if ARGV[4] == '1' and (x.epoch ~= tonumber(ARGV[3]) or x.owner == '') then return { 'fenced', x.epoch } end
if x.state == 'FINISHED' then return { 'fenced', x.epoch } end
open_purse(x)
local book, name, how, answer = key(x.id, 'calls'), ARGV[5], ARGV[6], ARGV[13]
local of = call_of(book, name)
if not of then return { 'unknown' } end
if of.state ~= 'open' then return { 'ok', spend_of(x) } end

local used = { ARGV[7], ARGV[8], ARGV[9], ARGV[10] }
if how == 'cancel' then
  end_call(x, book, name, of, 'cancelled', nil)
elseif how == 'cut' then
  cut_call(x, book, name, of, used, ARGV[12])
else
  local kept = answer ~= '' and tonumber(call('HGET', book, 'bytes') or 0) + #answer <= tonumber(ARGV[14])
  if kept then
    of.used = used
    call('HSET', book, 'body:' .. name, answer)
    call('HINCRBY', book, 'bytes', #answer)
  end
  end_call(x, book, name, of, kept and 'recorded' or 'passed', used)
  usage_event(x, name, ARGV[11], used, false)
end
save(x)
return { 'ok', spend_of(x) }
