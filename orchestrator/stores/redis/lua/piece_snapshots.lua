-- Snapshots: the hash `snapshot:<id>`, and its places in
--   index:snapshots:all           every one; equal scores, so in the order of the ids
--   index:snapshots:tenant:<t>   every one of a tenant, in the same order
--   index:snapshots:of:<exe>     those of an execution, scored by their number in it (the record counts `snapshots`)
--   index:snapshots:host:<h>     those whose files are there
--   index:snapshots:names:<t>    "<name>\t<id>"
--   index:snapshots:begins:<id>  executions that begin from it and are not its own
-- A record's `snapshot_id` is what its next attempt begins from where its files are gone: its newest, of a fork at first
-- the one it was forked from. `descends` is the nearest execution before it that is still there. Needs: record.
local function snapshot_key(id) return P .. 'snapshot:' .. id end
local function snapshots_of(what, of) return P .. 'index:snapshots:' .. what .. ':' .. of end

-- Some fields of one; absent fields are ''. nil when there is no such snapshot.
local function snapshot_fields(id, ...)
  local names = { 'execution', ... }
  local got = call('HMGET', snapshot_key(id), unpack(names))
  if not got[1] then return nil end
  local s = { id = id }
  for i, name in ipairs(names) do s[name] = got[i] or '' end
  return s
end

local function named_snapshot(tenant, name)
  return call('ZRANGEBYLEX', snapshots_of('names', tenant), '[' .. name .. '\t', '(' .. name .. '\n', 'LIMIT', 0, 2)
end

-- True if another one of the tenant has this name.
local function name_taken(tenant, name, id)
  for _, member in ipairs(named_snapshot(tenant, name)) do
    if member ~= name .. '\t' .. id then return string.sub(member, #name + 2) end
  end
  return nil
end

-- What x's next attempt begins from where its files are gone; '' = nothing.
local function begin_from(x, id)
  if x.snapshot_id ~= '' then call('ZREM', snapshots_of('begins', x.snapshot_id), x.id) end
  if id ~= '' and call('HGET', snapshot_key(id), 'execution') ~= x.id then
    call('ZADD', snapshots_of('begins', id), 0, x.id)
  end
  set(x, 'snapshot_id', id)
end

-- A new one of x. `s` has its id and all other fields as a flat list, `name` and `host` besides.
local function keep_snapshot(x, s)
  set(x, 'snapshots', x.snapshots + 1)
  call('HSET', snapshot_key(s.id), 'execution', x.id, 'tenant', x.tenant, 'n', x.snapshots, unpack(s.fields))
  call('ZADD', P .. 'index:snapshots:all', 0, s.id)
  call('ZADD', snapshots_of('tenant', x.tenant), 0, s.id)
  call('ZADD', snapshots_of('of', x.id), x.snapshots, s.id)
  call('ZADD', snapshots_of('host', s.host), 0, s.id)
  if s.name ~= '' then call('ZADD', snapshots_of('names', x.tenant), 0, s.name .. '\t' .. s.id) end
  begin_from(x, s.id)
end

-- The newest whole in the archive: of x, else the one it was forked from. nil = none.
local function newest_archived(x)
  for _, id in ipairs(call('ZREVRANGE', snapshots_of('of', x.id), 0, -1)) do
    if call('HGET', snapshot_key(id), 'archived') == '1' then return id end
  end
  local spec = cjson.decode(call('HGET', key(x.id, 'record'), 'spec'))
  local origin = type(spec.origin) == 'table' and spec.origin.snapshot_id
  return origin and call('HGET', snapshot_key(origin), 'archived') == '1' and origin or nil
end

-- The execution that has not ended and would begin its next attempt from it, or nil.
local function needed_by(s)
  local candidates = call('ZRANGE', snapshots_of('begins', s.id), 0, -1)
  candidates[#candidates + 1] = s.execution
  for _, id in ipairs(candidates) do
    local got = call('HMGET', key(id, 'record'), 'state', 'snapshot_id')
    if got[1] and got[1] ~= 'FINISHED' and got[2] == s.id then return id end
  end
  return nil
end

-- Its record and places. Whoever had it for the newest has the one before, or none.
local function drop_snapshot(id)
  local s = snapshot_fields(id, 'tenant', 'host', 'name')
  if not s then return end
  local others = call('ZRANGE', snapshots_of('begins', id), 0, -1)
  others[#others + 1] = s.execution
  call('ZREM', P .. 'index:snapshots:all', id)
  call('ZREM', snapshots_of('tenant', s.tenant), id)
  call('ZREM', snapshots_of('of', s.execution), id)
  call('ZREM', snapshots_of('host', s.host), id)
  if s.name ~= '' then call('ZREM', snapshots_of('names', s.tenant), s.name .. '\t' .. id) end
  call('UNLINK', snapshot_key(id), snapshots_of('begins', id))
  for _, other in ipairs(others) do
    if call('HGET', key(other, 'record'), 'snapshot_id') == id then
      local before = call('ZREVRANGE', snapshots_of('of', other), 0, 0)
      call('HSET', key(other, 'record'), 'snapshot_id', before[1] or '')
    end
  end
end
