-- needs: clock record intents
-- How it ended, said by the run that began it; also when it was held to be in doubt meanwhile: that run knows. ARGV:
-- prefix, id, epoch, fenced, key, run, ok, result.
local x = open(ARGV[2])
if not x then return { 'missing' } end
if ARGV[4] == '1' and (x.epoch ~= tonumber(ARGV[3]) or x.owner == '') then return { 'fenced', x.epoch } end
if x.state == 'FINISHED' then return { 'fenced', x.epoch } end
local journal, name = key(x.id, 'intents'), ARGV[5]
local of = intent_of(journal, name)
if not of then return { 'unknown' } end
if of.state ~= 'done' and of.state ~= 'failed' then
  if of.run ~= ARGV[6] then return { 'conflict', of.state } end
  of.state, of.ended = ARGV[7] == '1' and 'done' or 'failed', wall()
  event(x, 'intent.done', cjson.encode({ key = name, state = of.state }))
  of.at = x.tail
  put_intent(journal, name, of, ARGV[8])
  save(x)
end
return { 'ok', told_intent(journal, name) }
