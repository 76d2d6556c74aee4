-- needs: clock stream
-- Add an append and close, in one step. ARGV: prefix, name, a nonce (the same call again is the same append), media,
-- body ('' = none), close, has stream seq, stream seq, producer id ('' = none), epoch, seq, most bytes of the stream, of
-- all streams, most producers. Answers: the offset, closed, the producer's highest seq.
local body, close, producer = ARGV[5], ARGV[6] == '1', ARGV[9]
local epoch, seq = tonumber(ARGV[10]), tonumber(ARGV[11])
local now = wall()

local x = find(ARGV[2], now)
if not x then return { 'missing' } end
if x.deleted == '1' then return { 'removed' } end
local recent, producers = S .. x.g .. ':recent', S .. x.g .. ':producers'

local function done(word, n, highest)
  touch(x, now)
  if not n then
    local g
    g, n = tail_of(x)
    return { word, g, n, x.closed == '1' and 1 or 0, highest or -1 }
  end
  return { word, x.g, n, x.closed == '1' and 1 or 0, highest or -1 }
end

if producer == '' then
  local before = call('ZSCORE', recent, ARGV[3])
  if before then return done('ok', tonumber(before)) end
end
local tuple = producer ~= '' and producer .. ' ' .. ARGV[10] .. ' ' .. ARGV[11] or ''
if x.closed == '1' then
  if tuple ~= '' and x.closer == tuple then return done('repeated', nil, seq) end
  if tuple == '' and body == '' and close then return done('ok') end
  local g, n = tail_of(x)
  return { 'closed', g, n }
end
if #body > 0 and ARGV[4] ~= x.media then return { 'type', x.type } end
if producer ~= '' then
  local state = call('HGET', producers, producer)
  local last_epoch, last = -1, -1
  if state then
    last_epoch, last = string.match(state, '^(%d+) (%d+)$')
    last_epoch, last = tonumber(last_epoch), tonumber(last)
  end
  if epoch < last_epoch then return { 'stale', last_epoch } end
  if epoch > last_epoch then
    if seq ~= 0 then return state and { 'epoch' } or { 'gap', 0 } end
    if not state and call('HLEN', producers) >= tonumber(ARGV[14]) then return { 'full', 'producers' } end
  elseif seq <= last then
    return done('repeated', nil, last)
  elseif seq > last + 1 then
    return { 'gap', last + 1 }
  end
end
if ARGV[7] == '1' and #body > 0 and x.seq and not greater(ARGV[8], x.seq) then return { 'seq', x.seq } end
if x.bytes + #body > tonumber(ARGV[12]) then return { 'full', 'stream' } end
if tonumber(call('GET', S .. 'bytes') or '0') + #body > tonumber(ARGV[13]) then return { 'full', 'bytes' } end

if #body > 0 then
  add(x, body)
  if ARGV[7] == '1' then call('HSET', held(x.g), 'seq', ARGV[8]) end
  if producer == '' then
    call('ZADD', recent, x.tail, ARGV[3])
    call('ZREMRANGEBYRANK', recent, 0, -RECENT - 1)
    call('PEXPIRE', recent, RECENT_MS)
  end
end
if producer ~= '' then call('HSET', producers, producer, whole(epoch) .. ' ' .. whole(seq)) end
if close then
  finish(x)
  x.closer = tuple
end
call('HSET', held(x.g), 'tail', x.tail, 'bytes', whole(x.bytes), 'closed', x.closed, 'closer', x.closer)
return done('ok', #body > 0 and x.tail or nil, producer ~= '' and seq or nil)
