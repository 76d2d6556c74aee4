-- needs: clock transitions record queue calls snapshots life
-- What the indexes say of these executions, made what their records say. ARGV: prefix, id, …
-- Answers what was wrong: what, id, detail, …
local now = tick()
local found = {}
local function fixed(what, id, detail)
  found[#found + 1] = what
  found[#found + 1] = id
  found[#found + 1] = detail or ''
end
local STATES = { 'QUEUED', 'STARTING', 'RUNNING', 'PAUSED', 'HIBERNATING', 'HIBERNATED', 'STOPPING', 'FINISHED' }
local function member(set_key, id, wanted, what)
  local there = call('ZSCORE', set_key, id)
  if wanted and not there then
    call('ZADD', set_key, 0, id)
    fixed(what, id, 'added to ' .. string.sub(set_key, #P + 1))
  elseif there and not wanted then
    call('ZREM', set_key, id)
    fixed(what, id, 'taken from ' .. string.sub(set_key, #P + 1))
  end
end

for i = 2, #ARGV do
  local id = ARGV[i]
  local x = open(id)
  if x then
    local at = due_at(x)
    local score = call('ZSCORE', x.place, id)
    if (at == nil) ~= (not score) or (at and tonumber(score) ~= at) then
      settle(x, now)
      fixed('due', id, (score or 'absent') .. ' → ' .. tostring(at or 'absent'))
    end
    member(P .. 'index:all', id, true, 'list')
    member(P .. 'index:tenant:' .. x.tenant, id, true, 'list')
    for _, state in ipairs(STATES) do member(P .. 'index:state:' .. state, id, state == x.state, 'list') end
    local labels = call('HGET', key(id, 'record'), 'labels')
    if labels and labels ~= '' then
      for name, value in pairs(cjson.decode(labels)) do
        member(P .. 'index:label:' .. x.tenant .. ':' .. name .. '=' .. value, id, true, 'list')
      end
    end
    local over = x.state == 'FINISHED'
    if over and not call('ZSCORE', P .. 'index:finished', id) then
      call('ZADD', P .. 'index:finished', x.finished, id)
      fixed('list', id, 'added to index:finished')
    end
    if x.parked == 1 and not call('ZSCORE', P .. 'parked:' .. x.tenant, id) then
      call('ZADD', P .. 'parked:' .. x.tenant, x.created, id)
      fixed('quota', id, 'parked')
    end
    member(P .. 'index:active:' .. x.tenant, id,
      not over and x.parked ~= 1 and x.state ~= 'HIBERNATED', 'quota')
    if x.name ~= '' then
      local name = x.tenant .. '\t' .. x.name
      local holder = call('HGET', P .. 'names', name)
      local living = holder and call('HGET', key(holder, 'record'), 'state')
      -- The living one has it; among the ended, the newest: ids are in the order of their making.
      if not living or (holder ~= id and living == 'FINISHED' and (not over or id > holder)) then
        call('HSET', P .. 'names', name, id)
        fixed('name', id, x.name)
      end
    end
    local whose = x.snapshot_id ~= '' and snapshot_fields(x.snapshot_id)
    if whose and whose.execution ~= id and not over then
      member(snapshots_of('begins', x.snapshot_id), id, true, 'snapshot')
    end
    if x.descends ~= '' then member(P .. 'index:forks:' .. x.descends, id, true, 'list') end
    local placed = x.sandbox_id ~= '' and not over and x.state ~= 'QUEUED' and x.state ~= 'HIBERNATED'
    if placed and call('HGET', P .. 'index:sandboxes', x.sandbox_id) ~= id then
      call('HSET', P .. 'index:sandboxes', x.sandbox_id, id)
      fixed('sandbox', id, x.sandbox_id)
    end
    save(x)
  end
end
return { 'ok', found }
