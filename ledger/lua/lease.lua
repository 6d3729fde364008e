#!lua flags=allow-oom
-- Take or renew a lease. A new holder gets a new fence, which every later write of its names.
-- ARGV: root, name, owner, ms to live. Answers the fence, or 0 where somebody else holds it.
local key = root .. 'lease:' .. ARGV[2]
local owner = redis.call('HGET', key, 'owner')
if owner and owner ~= ARGV[3] then return 0 end
local fence = redis.call('HGET', key, 'fence')
if not owner then
  fence = redis.call('INCR', root .. 'fences')
  redis.call('HSET', key, 'owner', ARGV[3], 'fence', fence)
end
redis.call('PEXPIRE', key, ARGV[4])
return tonumber(fence)
