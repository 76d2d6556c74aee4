-- Streams of the generic namespace. One is three keys named by its generation, which is never used twice, and one that
-- says which generation a name means now:
--   stream:at:<tenant>:<name>  string   the generation
--   stream:<g>                 hash     name, type, media, tail, closed, closer, ttl, expires, want, inherited, source,
--                                       refs, deleted, seq, bytes
--   stream:<g>:entries         stream   appends <n>-0; the end <tail>-1; removed <tail>-2. Both only wake readers
--   stream:<g>:producers       hash     producer id -> "<epoch> <seq>"
--   stream:<g>:recent          zset     nonces of the last appends without a producer; gone a minute after the last
--   stream:expiry              zset     generation -> when it expires, wall ms
--   stream:generations, stream:bytes    counters
-- `inherited` of a fork is the chain "<g>:<last n> …" it reads before its own entries. A source is kept while `refs`
-- forks need it. Time is the wall's: Expires-At is a wall time, and a TTL is a promise to people.
local S = P .. 'stream:'
local REMOVED_MS = 10000
local RECENT_MS, RECENT = 60000, 256

local function whole(number) return string.format('%.0f', number) end
local function named(name) return S .. 'at:' .. name end
local function held(g) return S .. g end
local function entries(g) return S .. g .. ':entries' end

local function opened(g)
  local got = call('HGETALL', held(g))
  if #got == 0 then return nil end
  local x = { g = g }
  for i = 1, #got, 2 do x[got[i]] = got[i + 1] end
  x.tail, x.refs, x.bytes = tonumber(x.tail), tonumber(x.refs), tonumber(x.bytes)
  return x
end

-- Removes x, and the removed sources that only it still needed.
local function remove(x)
  while x do
    if x.refs > 0 then
      call('HSET', held(x.g), 'deleted', '1')
      call('ZREM', S .. 'expiry', x.g)
      call('UNLINK', S .. x.g .. ':producers', S .. x.g .. ':recent')
      call('XADD', entries(x.g), x.tail .. '-2', 'b', '')
      return
    end
    call('UNLINK', held(x.g), entries(x.g), S .. x.g .. ':producers', S .. x.g .. ':recent')
    call('ZREM', S .. 'expiry', x.g)
    call('DECRBY', S .. 'bytes', whole(x.bytes))
    if call('GET', named(x.name)) == x.g then call('DEL', named(x.name)) end
    -- Whoever waits for its next entry finds this one, in whatever process.
    call('XADD', entries(x.g), x.tail .. '-2', 'b', '')
    call('PEXPIRE', entries(x.g), REMOVED_MS)
    local source = x.source ~= '' and opened(x.source) or nil
    if not source then return end
    source.refs = source.refs - 1
    call('HSET', held(source.g), 'refs', source.refs)
    x = source.deleted == '1' and source.refs == 0 and source or nil
  end
end

-- What the name means now: nil, or a stream (perhaps one that is `deleted` and kept for its forks).
local function find(name, now)
  local g = call('GET', named(name))
  local x = g and opened(g)
  if x and x.deleted ~= '1' and x.expires ~= '' and tonumber(x.expires) <= now then
    remove(x)
    x = opened(g)
  end
  return x or nil
end

local function touch(x, now)
  if x.ttl == '' then return end
  x.expires = whole(now + tonumber(x.ttl))
  call('HSET', held(x.g), 'expires', x.expires)
  call('ZADD', S .. 'expiry', x.expires, x.g)
end

-- The chain of {generation, last n} that x is read from, its own last.
local function chain(x)
  local out = {}
  for g, n in string.gmatch(x.inherited, '(%d+):(%d+)') do out[#out + 1] = { g, tonumber(n) } end
  out[#out + 1] = { x.g, x.tail }
  return out
end

-- Where in the chain an offset is; nil and why.
local function place(links, g, n)
  if g == '0' and n == 0 then return 1, 0 end
  for i, link in ipairs(links) do
    if link[1] == g then
      if n <= link[2] then return i, n end
      return nil, 'never'
    end
  end
  return nil, 'gone'
end

local function tail_of(x)
  local links = chain(x)
  local last = x.tail == 0 and #links > 1 and links[#links - 1] or links[#links]
  return last[1], last[2]
end

local function standing(x)
  local g, n = tail_of(x)
  return { x.g, x.type, x.closed == '1' and 1 or 0, g, n, x.ttl, x.expires }
end

local function add(x, body)
  x.tail = x.tail + 1
  x.bytes = x.bytes + #body
  call('XADD', entries(x.g), x.tail .. '-0', 'b', body)
  call('INCRBY', S .. 'bytes', #body)
end

local function finish(x)
  x.closed = '1'
  call('XADD', entries(x.g), x.tail .. '-1', 'b', '')
end

-- Byte by byte. Lua's own `<` follows the server's locale (strcoll).
local function greater(a, b)
  for i = 1, math.min(#a, #b) do
    local p, q = string.byte(a, i), string.byte(b, i)
    if p ~= q then return p > q end
  end
  return #a > #b
end
