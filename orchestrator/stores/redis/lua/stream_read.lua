-- needs: clock stream
-- What comes after an offset, and how the stream stands, as one picture. ARGV: prefix, name, generation ('' = from the
-- tail), n, most bytes (0 = none), renew the TTL. Answers: standing, start, next, at the end, bodies.
local most = tonumber(ARGV[5])
local now = wall()
local x = find(ARGV[2], now)
if not x then return { 'missing' } end
if x.deleted == '1' then return { 'removed' } end
if ARGV[6] == '1' then touch(x, now) end

local links = chain(x)
local tail_g, tail_n = tail_of(x)
local i, n = #links, x.tail
if ARGV[3] ~= '' then
  i, n = place(links, ARGV[3], tonumber(ARGV[4]))
  if not i then return { n } end
end
local start_g, start_n = links[i][1], n
if ARGV[3] == '' then start_g, start_n = tail_g, tail_n end
local next_g, next_n = start_g, start_n

local bodies, bytes = {}, 0
while bytes < most do
  while n >= links[i][2] and i < #links do i, n = i + 1, 0 end
  if n >= links[i][2] then break end
  -- As many as should fit, judged by what came: entries may be 4 MiB or one byte.
  local count = 4
  if #bodies > 0 then count = math.max(1, math.min(512, math.floor((most - bytes) / (bytes / #bodies + 1)))) end
  local rows = call('XRANGE', entries(links[i][1]), (n + 1) .. '-0', links[i][2] .. '-0', 'COUNT', count)
  if #rows == 0 then return { 'lost', links[i][1], n } end
  for _, row in ipairs(rows) do
    if bytes >= most then break end
    bodies[#bodies + 1] = row[2][2]
    bytes = bytes + #row[2][2]
    n = n + 1
  end
  next_g, next_n = links[i][1], n
end
while n >= links[i][2] and i < #links do i, n = i + 1, 0 end
local at_end = n >= links[i][2]
if at_end then next_g, next_n = tail_g, tail_n end
return { 'ok', standing(x), start_g, start_n, next_g, next_n, at_end and 1 or 0, bodies }
