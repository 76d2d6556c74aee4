-- needs: clock record intents
-- An intent written before it is acted on, or what became of it. ARGV: prefix, id, epoch, fenced, attempt, key, run,
-- kind, effect, summary, digest, most intents, most bytes.
local x = open(ARGV[2])
if not x then return { 'missing' } end
if ARGV[4] == '1' and (x.epoch ~= tonumber(ARGV[3]) or x.owner == '') then return { 'fenced', x.epoch } end
if x.state == 'FINISHED' then return { 'fenced', x.epoch } end
local attempt, name, run = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local kind, effect, summary, digest = ARGV[8], ARGV[9], ARGV[10], ARGV[11]
if attempt ~= x.attempt then return { 'over', x.epoch, x.attempt } end
local journal, order = key(x.id, 'intents'), key(x.id, 'intents:order')

local of = intent_of(journal, name)
local go = true
if not of then
  local most, most_bytes = tonumber(ARGV[12]), tonumber(ARGV[13])
  if call('LLEN', order) >= most then return { 'full', most, 'intents' } end
  if tonumber(call('HGET', journal, 'bytes') or 0) >= most_bytes then return { 'full', most_bytes, 'bytes' } end
  of = { n = call('RPUSH', order, name), digest = digest }
elseif of.digest ~= digest then
  return { 'reused' }
elseif of.state == 'open' and of.run == run and of.attempt == attempt then
  return { 'ok', 1, told_intent(journal, name) }
elseif of.state == 'done' or of.state == 'failed' then
  go = false
elseif of.state ~= 'retry' then
  -- The stricter word counts: what was begun as `once` is not run again because it is called something else now.
  go = repeatable(of.effect) and repeatable(effect)
end

if go then
  of.kind, of.effect, of.summary, of.attempt, of.run = kind, effect, summary, attempt, run
  of.state, of.begun, of.ended = 'open', wall(), nil
  event(x, 'intent.recorded', cjson.encode({
    key = name, kind = kind, effect = effect, summary = summary, run = run, n = of.n,
  }))
  of.at = x.tail
  put_intent(journal, name, of)
elseif of.state == 'open' then
  of.state = 'in_doubt'
  event(x, 'intent.in_doubt', cjson.encode({
    key = name, kind = of.kind, effect = of.effect, summary = of.summary, attempt = of.attempt,
  }))
  of.at = x.tail
  put_intent(journal, name, of)
end
save(x)
return { 'ok', go and 1 or 0, told_intent(journal, name) }
