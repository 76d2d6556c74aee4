-- needs: clock record
-- Everything of one that has ended. ARGV: prefix, id.
local id = ARGV[2]
local x = open(id)
if x and x.state ~= 'FINISHED' then return { 'conflict', x.state } end
if x then
  local labels = call('HGET', key(id, 'record'), 'labels')
  if labels and labels ~= '' then
    for name, value in pairs(cjson.decode(labels)) do
      call('ZREM', P .. 'index:label:' .. x.tenant .. ':' .. name .. '=' .. value, id)
    end
  end
  local name = x.tenant .. '\t' .. x.name
  if x.name ~= '' and call('HGET', P .. 'names', name) == id then call('HDEL', P .. 'names', name) end
  call('ZREM', P .. 'index:tenant:' .. x.tenant, id)
  call('ZREM', P .. 'index:state:' .. x.state, id)
end
call('ZREM', P .. 'index:all', id)
call('ZREM', P .. 'index:finished', id)
call('UNLINK', key(id, 'record'), key(id, 'history'), key(id, 'inbox'), key(id, 'inbox:ids'),
  key(id, 'intents'), key(id, 'intents:order'), key(id, 'calls'))
return { 'ok' }
