-- needs: clock transitions record queue calls snapshots life
-- Frames, the worker's own entries and a change of the record: all of it or nothing. ARGV: prefix, id, epoch, fenced,
-- attempt, own ('' = none), first src, last src ('' = no frames), how many entries they are, the change as JSON
-- ('' = none); then two for each entry, those of the frames first: head (its time may be -, which is now), body.
local epoch, fenced, attempt, own = tonumber(ARGV[3]), ARGV[4] == '1', tonumber(ARGV[5]), tonumber(ARGV[6])
local first_src, last_src, of_frames = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local BASE = 10

local x = open(ARGV[2])
if not x then return { 'missing' } end
if fenced and x.epoch ~= epoch then return { 'fenced', x.epoch } end
local repeated = fenced and own ~= nil and own <= x.own
local change = nil
if ARGV[10] ~= '' and not repeated then change = cjson.decode(ARGV[10]) end

-- Which of the frames are news.
local current = change and change.attempt or x.attempt
local src = current > x.attempt and 0 or x.src
local skip = 0
if last_src then
  if attempt > current then return { 'conflict', x.state, 'attempt ' .. attempt .. ' was not placed' } end
  if attempt < current then
    skip, last_src = of_frames, nil
  elseif fenced then
    if first_src > src + 1 then return { 'resend', src + 1 } end
    while skip < of_frames and tonumber(string.match(ARGV[BASE + 1 + 2 * skip], '^%d+')) <= src do skip = skip + 1 end
    if last_src <= src then last_src = nil end
  end
end
local count = math.floor((#ARGV - BASE) / 2)
local own_count = repeated and 0 or count - of_frames
local nothing = not last_src and not change and own_count == 0

if x.state == 'FINISHED' or (fenced and x.owner == '') then
  if nothing then return { 'ok', x.tail, x.src, x.state, 1 } end
  if x.state == 'FINISHED' then return { 'closed', x.tail } end
  return { 'fenced', x.epoch }
end
local to = nil
if change then
  if current < x.attempt then return { 'conflict', x.state, 'attempt ' .. current .. ' is over' } end
  if change.expects and change.expects ~= x.state then return { 'conflict', x.state, 'expected ' .. change.expects } end
  if change.trigger then
    to = TRANSITIONS[x.state .. ' ' .. change.trigger]
    if not to then return { 'illegal', x.state } end
  end
  if (to == 'FINISHED') ~= (change.outcome ~= nil) then return { 'outcome', x.state } end
  if change.snapshot and snapshot_fields(change.snapshot.id) then
    return { 'conflict', x.state, change.snapshot.id .. ' is there already' }
  end
end
if nothing then return { 'ok', x.tail, x.src, x.state, 1 } end

local history, tail, at = key(x.id, 'history'), x.tail, wall()
local function write(from, upto)
  for i = BASE + 1 + 2 * from, BASE + 2 * upto, 2 do
    local head = ARGV[i]
    if string.find(head, ' - ', 1, true) then head = string.gsub(head, '^(%d+ %d+ %a) %- ', '%1 ' .. at .. ' ') end
    tail = tail + 1
    call('XADD', history, tail .. '-0', 'h', head, 'b', ARGV[i + 1])
  end
end
write(skip, of_frames)
if not repeated then write(of_frames, count) end
set(x, 'tail', tail)
if last_src then set(x, 'src', last_src) end
if own and not repeated then set(x, 'own', own) end

if change then
  if current > x.attempt then
    set(x, 'attempt', current)
    set(x, 'want_interrupts', '')
    set(x, 'src', last_src or 0)
  end
  if change.sandbox_id and change.sandbox_id ~= x.sandbox_id then
    if x.sandbox_id ~= '' then call('HDEL', P .. 'index:sandboxes', x.sandbox_id) end
    set(x, 'sandbox_id', change.sandbox_id)
    if x.sandbox_id ~= '' then call('HSET', P .. 'index:sandboxes', x.sandbox_id, x.id) end
  end
  for _, name in ipairs({ 'host', 'failures', 'output_mode', 'resources', 'frozen' }) do
    if change[name] then set(x, name, change[name]) end
  end
  for _, name in ipairs({ 'delivered', 'consumed' }) do
    if change[name] and change[name] > x[name] then set(x, name, change[name]) end
  end
  if change.started and x.started == 0 then set(x, 'started', at) end
  for _, done in ipairs(change.done_wants or {}) do
    for _, name in ipairs({ 'want_cancel', 'want_pause', 'want_hibernate', 'want_resources' }) do
      if x[name] ~= '' and cjson.decode(x[name]).id == done then set(x, name, '') end
    end
    without(x, 'want_interrupts', done)
    without(x, 'want_snapshots', done)
  end
  if change.snapshot then
    keep_snapshot(x, change.snapshot)
    without(x, 'want_snapshots', change.snapshot.id)
  end
  if to or change.unowned or x.place ~= place_of(x) then
    local now = tick()
    local ready = now
    -- The caller's moment is one of the wall clock; what is due goes by the logical one.
    if change.not_before then
      ready = now + math.max(0, change.not_before - at)
      set(x, 'not_before', ready)
    end
    if to == 'FINISHED' then
      finish(x, change.trigger, change.outcome, now)
    elseif to then
      move(x, change.trigger, to == 'STARTING' and { owner = x.owner, epoch = x.epoch } or nil)
    end
    if to == 'HIBERNATED' then
      set(x, 'want_hibernate', '')
      local resume = x.want_pause ~= '' and not cjson.decode(x.want_pause).paused
      if resume then set(x, 'want_pause', '') end
      if resume or (change.seen and x.inbox_tail > change.seen) then wake(x, now)
      else lie_down(x, change.not_before and ready or 0, now) end
    elseif to == 'QUEUED' then
      lie_down(x, ready, now)
    elseif to ~= 'FINISHED' then
      if change.unowned then give_up(x, ready) end
      if not (change.unowned and end_unowned(x, now)) then settle(x, now) end
    end
  end
end
save(x)
return { 'ok', x.tail, x.src, x.state, repeated and 1 or 0 }
