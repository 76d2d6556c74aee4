-- A record opened, changed and saved; events that a script writes itself. Needs: clock (wall).
local TEXT = {
  'state', 'owner', 'sandbox_id', 'host', 'tenant', 'harness', 'name', 'wanted', 'want_cancel', 'want_pause',
  'want_hibernate', 'want_resources', 'want_interrupts', 'want_snapshots', 'snapshot_id', 'descends', 'outcome',
  'output_mode', 'resources',
}
local NUMBERS = {
  'epoch', 'attempt', 'tail', 'src', 'own', 'generation', 'failures', 'inbox_tail', 'delivered', 'consumed',
  'lease', 'ready', 'not_before', 'deadline', 'parked', 'created', 'started', 'finished', 'snapshots',
  'frozen',
}
local FIELDS = {}
for _, name in ipairs(TEXT) do FIELDS[#FIELDS + 1] = name end
for _, name in ipairs(NUMBERS) do FIELDS[#FIELDS + 1] = name end

-- Where its due member belongs: with its slot.
local function place_of(x)
  if x.host ~= '' then return P .. 'due:host:' .. x.host end
  return P .. 'due:any'
end

-- nil when there is no such execution. Absent fields are '' and 0.
local function open(id)
  local got = call('HMGET', key(id, 'record'), unpack(FIELDS))
  if not got[1] then return nil end
  local x = { id = id, changed = {} }
  for i, name in ipairs(FIELDS) do
    if i <= #TEXT then x[name] = got[i] or '' else x[name] = tonumber(got[i] or 0) or 0 end
  end
  x.place = place_of(x)
  return x
end

local function set(x, name, value)
  if x[name] ~= value then
    x[name] = value
    x.changed[name] = true
  end
end

local function save(x)
  local values = {}
  for name in pairs(x.changed) do
    values[#values + 1] = name
    values[#values + 1] = x[name]
  end
  if #values > 0 then call('HSET', key(x.id, 'record'), unpack(values)) end
  x.changed = {}
end

-- An entry of the history has two fields, always the same, so that a stream stores their names once per node:
-- h = "<src> <attempt> <flag> <epoch ms> <type> <data as JSON>", b = the body's bytes. Flags: p platform, h harness;
-- capital when there is a body. (Four fields took the server twice as long.)
local function event(x, kind, data)
  set(x, 'tail', x.tail + 1)
  call('XADD', key(x.id, 'history'), x.tail .. '-0',
    'h', '0 ' .. x.attempt .. ' p ' .. wall() .. ' ' .. kind .. ' ' .. data, 'b', '')
end

-- The end, for ever: wakes whoever waits without moving the tail.
local function end_marker(x)
  call('XADD', key(x.id, 'history'), x.tail .. '-1', 'h', '', 'b', '')
end
