#!lua flags=allow-oom
-- What a chore has done, where it stands and what is told of it, in one call that its fence guards.
-- ARGV: root, name, fence, ms that the claim goes on ('' to let it go), ms until it is due again (with a claim that is let go), new state,
--       '1' to give way to other chores of its registry, ms to keep it when it has ended, event stream length,
--       number of fields, field, value ..., number of events, event ..., then commands, each as its number of words and these
-- Answers 1, or 0 where another has taken the chore on.
local key, now = root .. 'chore:' .. ARGV[2], now_ms()
local fence, registry = unpack(redis.call('HMGET', key, 'fence', 'registry'))
if fence ~= ARGV[3] or redis.call('HGET', key, 'state') ~= 'waiting' then return 0 end
local at = 11
for _ = 1, tonumber(ARGV[10]) do
  redis.call('HSET', key, ARGV[at], ARGV[at + 1])
  at = at + 2
end
local events = tonumber(ARGV[at])
for each = at + 1, at + events do publish_event(ARGV[each], ARGV[9]) end
at = at + 1 + events
while ARGV[at] do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + 1 + words
end
redis.call('HSET', key, 'updated', now, 'state', ARGV[6])
if ARGV[4] ~= '' then
  redis.call('HSET', key, 'held', now + ARGV[4])
  redis.call('ZADD', root .. 'chores', now + ARGV[4], ARGV[2])
  return 1
end
redis.call('HDEL', key, 'held', 'fence')
local ended = ARGV[6] ~= 'waiting'
if (ended or ARGV[7] == '1') and redis.call('HGET', root .. 'chores:active', registry) == ARGV[2] then
  redis.call('HDEL', root .. 'chores:active', registry)
end
if ended then
  redis.call('ZREM', root .. 'chores', ARGV[2])
  redis.call('PEXPIRE', key, ARGV[8])
  redis.call('ZREMRANGEBYSCORE', root .. 'chores:ended', '-inf', now - ARGV[8])
  redis.call('ZADD', root .. 'chores:ended', now, ARGV[2])
else
  redis.call('ZADD', root .. 'chores', now + ARGV[5], ARGV[2])
end
return 1
