#!lua flags=allow-oom
-- Take a chore on: a new fence, which each of its writes names. Of the chores of one registry one is under way at a time, from its first
-- claim until it has ended or given way. ARGV: root, name, ms that the claim lives, ms after which a chore that has to wait for another is
-- looked at again. Answers {'no', why} or {'ok', fence, field, value ...}
local key, now = root .. 'chore:' .. ARGV[2], now_ms()
local state, registry, held = unpack(redis.call('HMGET', key, 'state', 'registry', 'held'))
if not state then return {'no', 'there is no such chore'} end
if state ~= 'waiting' then return {'no', 'it is ' .. state} end
if tonumber(held or '0') > now then return {'no', 'another worker is at it'} end
local active = redis.call('HGET', root .. 'chores:active', registry)
if active and active ~= ARGV[2] and redis.call('HGET', root .. 'chore:' .. active, 'state') == 'waiting' then
  redis.call('ZADD', root .. 'chores', now + ARGV[4], ARGV[2])
  redis.call('HSET', key, 'said', 'waits for ' .. active)
  return {'no', 'it waits for ' .. active}
end
redis.call('HSET', root .. 'chores:active', registry, ARGV[2])
local fence = redis.call('INCR', root .. 'fences')
redis.call('HSET', key, 'fence', fence, 'held', now + ARGV[3], 'updated', now)
redis.call('HSETNX', key, 'begun', now)
redis.call('ZADD', root .. 'chores', now + ARGV[3], ARGV[2])
local answer = {'ok', fence}
for _, word in ipairs(redis.call('HGETALL', key)) do answer[#answer + 1] = word end
return answer
