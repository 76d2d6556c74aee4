-- needs: clock record snapshots
-- Everything of one that has ended, its snapshots too, but for those that others are still to begin from. ARGV: prefix, id.
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
  for _, snapshot in ipairs(call('ZRANGE', snapshots_of('of', id), 0, -1)) do
    local s = snapshot_fields(snapshot)
    if s and not needed_by(s) then drop_snapshot(snapshot) end
  end
  begin_from(x, '')
  -- Its forks descend from what it descended from.
  local forks = P .. 'index:forks:'
  for _, fork in ipairs(call('ZRANGE', forks .. id, 0, -1)) do
    call('HSET', key(fork, 'record'), 'descends', x.descends)
    if x.descends ~= '' then call('ZADD', forks .. x.descends, 0, fork) end
  end
  call('UNLINK', forks .. id)
  if x.descends ~= '' then call('ZREM', forks .. x.descends, id) end
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
