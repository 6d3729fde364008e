#!lua flags=allow-oom
-- Give a lease back before its time. ARGV: root, name, owner
local key = root .. 'lease:' .. ARGV[2]
if redis.call('HGET', key, 'owner') == ARGV[3] then return redis.call('DEL', key) end
return 0
