-- needs: clock stream
-- Make a stream, or say how the one of that name stands. ARGV: prefix, name, media ('' = the source's), content type,
-- ttl ms, expires ms, closed, what was asked for as JSON, first body, the source's name, fork generation ('' = its
-- tail), fork n, what is copied of the append behind the fork point, the source's generation as the caller knew it, most
-- bytes of all streams, most links of a chain.
local name, media, closed, want, body = ARGV[2], ARGV[3], ARGV[7], ARGV[8], ARGV[9]
local copied, most_bytes, most_links = ARGV[13], tonumber(ARGV[15]), tonumber(ARGV[16])
local now = wall()

-- What has expired goes with what comes: the heap of dead streams cannot grow.
for _, g in ipairs(call('ZRANGEBYSCORE', S .. 'expiry', '-inf', whole(now), 'LIMIT', 0, 8)) do
  local dead = opened(g)
  if dead and dead.deleted ~= '1' then remove(dead) else call('ZREM', S .. 'expiry', g) end
end

local there = find(name, now)
if there then
  if there.deleted == '1' then return { 'removed' } end
  if media ~= '' and media ~= there.media then return { 'differs', 'content type' } end
  if there.want ~= want then return { 'differs', 'time to live, expiry or fork' } end
  if (there.closed == '1') ~= (closed == '1') then return { 'differs', 'being closed or not' } end
  return { 'there', standing(there) }
end

local x = {
  name = name, type = ARGV[4], media = media, tail = 0, closed = '', closer = '', ttl = ARGV[5], expires = ARGV[6],
  want = want, inherited = '', source = '', refs = 0, bytes = 0,
}
local source = nil
if ARGV[10] ~= '' then
  source = find(ARGV[10], now)
  if not source then return { 'no_source' } end
  if source.deleted == '1' then return { 'source_removed' } end
  if source.g ~= ARGV[14] then return { 'moved' } end
  if media ~= '' and media ~= source.media then return { 'source_type', source.type } end
  local links, at_g, at_n = chain(source), ARGV[11], tonumber(ARGV[12])
  if at_g == '' then at_g, at_n = tail_of(source) end
  local i, n = place(links, at_g, at_n)
  if not i then return { 'beyond' } end
  if i > most_links then return { 'full', 'links' } end
  local inherited = {}
  for k = 1, i - 1 do inherited[k] = links[k][1] .. ':' .. links[k][2] end
  inherited[i] = links[i][1] .. ':' .. n
  x.inherited, x.source = table.concat(inherited, ' '), source.g
  if media == '' then x.type, x.media = source.type, source.media end
  if x.ttl == '' and x.expires == '' then
    x.ttl = source.ttl
    if source.ttl == '' then x.expires = source.expires end
  end
end
if tonumber(call('GET', S .. 'bytes') or '0') + #body + #copied > most_bytes then return { 'full', 'bytes' } end

x.g = whole(call('INCR', S .. 'generations'))
if x.ttl ~= '' then x.expires = whole(now + tonumber(x.ttl)) end
if #copied > 0 then add(x, copied) end
if #body > 0 then add(x, body) end
if closed == '1' then finish(x) end
call('HSET', held(x.g), 'name', x.name, 'type', x.type, 'media', x.media, 'tail', x.tail, 'closed', x.closed, 'closer', '',
  'ttl', x.ttl, 'expires', x.expires, 'want', x.want, 'inherited', x.inherited, 'source', x.source, 'refs', 0,
  'bytes', whole(x.bytes))
if x.expires ~= '' then call('ZADD', S .. 'expiry', x.expires, x.g) end
if source then call('HINCRBY', held(source.g), 'refs', 1) end
call('SET', named(name), x.g)
return { 'made', standing(x) }
