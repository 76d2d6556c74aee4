-- What every script begins with. All keys are made from the installation's prefix: one primary, no Cluster.
-- Redis does not undo a script that fails half-way: in each of them, every check comes before the first write.
local P = ARGV[1]
local call = redis.call
local function key(id, what) return P .. '{' .. id .. '}:' .. what end
