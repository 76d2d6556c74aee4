-- One execution at one moment: what may change later, and how far what only grows has come. ARGV: prefix, id. Answers:
-- skew, the record, how many intents, its snapshots, of the calls what is needed to settle those under way.
local id = ARGV[2]
local record = call('HGETALL', key(id, 'record'))
if #record == 0 then return { 'missing' } end
local book, calls = key(id, 'calls'), {}
local function take(field)
  local value = call('HGET', book, field)
  if value then
    calls[#calls + 1] = field
    calls[#calls + 1] = value
  end
end
for _, field in ipairs({ 'last', 'open', 'told', 'over' }) do take(field) end
for name in string.gmatch(call('HGET', book, 'open') or '', '%S+') do take('call:' .. name) end
local clock = call('HMGET', P .. 'meta', 'last', 'now')
return {
  'ok', tonumber(clock[1] or 0) - tonumber(clock[2] or 0), record, call('LLEN', key(id, 'intents:order')),
  call('ZRANGE', P .. 'index:snapshots:of:' .. id, 0, -1), calls,
}
