-- needs: clock transitions record queue calls snapshots life
-- A wish, recorded once per id; its owner's bell. ARGV: prefix, id, kind (cancel pause resume resources interrupt egress
-- budget snapshot hibernate), the wish's id, the wish as JSON, the states it makes sense in ("QUEUED RUNNING …").
local REMEMBERED, INTERRUPTS, SNAPSHOTS = 100, 64, 16
local x = open(ARGV[2])
if not x then return { 'missing' } end
local kind, wish, want = ARGV[3], ARGV[4], cjson.decode(ARGV[5])
local now = tick()
local function record() return { 'ok', skew, call('HGETALL', key(x.id, 'record')) } end

local known = {}
for id in string.gmatch(x.wanted, '[^\n]+') do
  if id == wish then return record() end
  known[#known + 1] = id
end
if kind == 'snapshot' and snapshot_fields(wish) then return record() end -- there it is; the id has been forgotten since
if not string.find(ARGV[6], x.state, 1, true) then return { 'conflict', x.state, x.snapshot_id } end
local interrupts, snapshots = {}, {}
if kind == 'interrupt' then
  if want.attempt ~= x.attempt then return { 'attempt', x.attempt } end
  if x.want_interrupts ~= '' then interrupts = cjson.decode(x.want_interrupts) end
  if #interrupts >= INTERRUPTS then return { 'full', INTERRUPTS } end
elseif kind == 'snapshot' then
  if x.want_snapshots ~= '' then snapshots = cjson.decode(x.want_snapshots) end
  local other = want.name ~= '' and name_taken(x.tenant, want.name, wish)
  if other then return { 'taken', other } end
  if #snapshots >= SNAPSHOTS then return { 'full', SNAPSHOTS } end
end

local news = true
if kind == 'cancel' then
  if x.want_cancel == '' then
    set(x, 'want_cancel', ARGV[5])
  else -- the first one wins; a later one may only shorten the grace
    local first = cjson.decode(x.want_cancel)
    news = want.grace_s < first.grace_s
    if news then
      first.grace_s = want.grace_s
      set(x, 'want_cancel', cjson.encode(first))
    end
  end
elseif kind == 'pause' then
  set(x, 'want_pause', ARGV[5])
elseif kind == 'resume' then
  local stands = x.state == 'QUEUED' or x.state == 'HIBERNATED'
  news = not stands or x.want_pause ~= '' or x.state == 'HIBERNATED'
  set(x, 'want_pause', stands and '' or ARGV[5])
  set(x, 'want_hibernate', '') -- the last one wins
elseif kind == 'resources' then -- per field, the last one wins
  if x.want_resources ~= '' then
    for name, value in pairs(cjson.decode(x.want_resources)) do
      if want[name] == nil then want[name] = value end
    end
  end
  set(x, 'want_resources', cjson.encode(want))
elseif kind == 'egress' or kind == 'budget' then -- stands at once: one event says that it was asked for and is so
  set(x, kind, ARGV[5])
  if kind == 'budget' then set(x, 'over_budget', '') end
  event(x, kind .. '.changed', ARGV[5])
  news = false
elseif kind == 'snapshot' then
  snapshots[#snapshots + 1] = want
  set(x, 'want_snapshots', cjson.encode(snapshots))
elseif kind == 'hibernate' then -- what sleeps, or is about to, has what it was asked for
  news = x.state ~= 'HIBERNATING' and x.state ~= 'HIBERNATED'
  if news then set(x, 'want_hibernate', ARGV[5]) end
else
  interrupts[#interrupts + 1] = want
  set(x, 'want_interrupts', cjson.encode(interrupts))
end
known[#known + 1] = wish
set(x, 'wanted', table.concat(known, '\n', math.max(1, #known - REMEMBERED + 1)))
if news then
  want.want = kind
  event(x, 'execution.wanted', cjson.encode(want))
end
if x.owner ~= '' then
  ring_owner(x)
elseif not end_unowned(x, now) and kind == 'resume' and x.state == 'HIBERNATED' then
  wake(x, now)
end
save(x)
return record()
