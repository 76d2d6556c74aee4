-- Two clocks, in milliseconds. `wall` is for people: the times in events and records. `tick` is logical and decides
-- what is due: it never goes back and never by more than 5 s at once, so a clock that jumps an hour expires nothing.
-- `skew` = wall - logical turns a logical moment into one for people. `restoring`: a backup is being restored, or was half.
local skew, restoring = 0, false
local function wall()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function tick()
  local at = wall()
  local meta = call('HMGET', P .. 'meta', 'last', 'now', 'restoring')
  restoring = meta[3]
  local last, now = tonumber(meta[1] or nil), tonumber(meta[2] or nil)
  if last and now then
    local step = at - last
    if step < 0 then step = 0 elseif step > 5000 then step = 5000 end
    now = now + step
  else
    now = at
  end
  call('HSET', P .. 'meta', 'last', at, 'now', now)
  skew = at - now
  return now
end
