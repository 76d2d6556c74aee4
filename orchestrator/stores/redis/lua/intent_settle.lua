-- needs: clock record queue intents
-- A person's decision on what is in doubt. After the end only the journal changes: nothing follows a history's end.
-- ARGV: prefix, id, key, decision (retry done fail), result, by, a nonce: the same call again (a lost reply) decides
-- nothing that came after it.
local TO = { retry = 'retry', done = 'done', fail = 'failed' }
local x = open(ARGV[2])
if not x then return { 'missing' } end
local journal, name, decision = key(x.id, 'intents'), ARGV[3], ARGV[4]
local of = intent_of(journal, name)
if not of then return { 'unknown' } end
if of.nonce == ARGV[7] then return { 'ok', told_intent(journal, name) } end
if not in_doubt(x, of) then
  if of.decision == decision then return { 'ok', told_intent(journal, name) } end
  return { 'conflict', of.state }
end
of.state, of.decision, of.by, of.nonce = TO[decision], decision, ARGV[6], ARGV[7]
of.ended = decision ~= 'retry' and wall() or nil
of.at = x.tail + 1 -- its event's, or after the end
put_intent(journal, name, of, decision ~= 'retry' and ARGV[5] or '')
if x.state ~= 'FINISHED' then
  event(x, 'intent.settled', cjson.encode({ key = name, decision = decision, by = of.by }))
  ring_owner(x)
  save(x)
end
return { 'ok', told_intent(journal, name) }
