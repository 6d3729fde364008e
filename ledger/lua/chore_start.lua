#!lua flags=allow-oom
-- Put a chore on the list, or let one that was stopped go on: with what is given, else where it stands. An unfinished one stays as it is,
-- and comes soon. ARGV: root, name, registry, what is known of it (JSON), ms until it is due, schedule or '', its occurrence (ms)
-- Answers 1, or 0 where nothing was changed: it is on the list already, or this occurrence of the schedule was taken by somebody else.
if ARGV[6] ~= '' then
  local last = redis.call('HGET', root .. 'schedules', ARGV[6])
  if last and tonumber(last) >= tonumber(ARGV[7]) then return 0 end
  redis.call('HSET', root .. 'schedules', ARGV[6], ARGV[7])
end
local key, now = root .. 'chore:' .. ARGV[2], now_ms()
local state, held = unpack(redis.call('HMGET', key, 'state', 'held'))
local due = now + ARGV[5]
if state == 'waiting' then
  local listed = redis.call('ZSCORE', root .. 'chores', ARGV[2])
  if not (listed and (tonumber(listed) <= due or tonumber(held or '0') > now)) then redis.call('ZADD', root .. 'chores', due, ARGV[2]) end
  return 0
end
if state ~= 'stopped' then
  redis.call('DEL', key)
  redis.call('HSET', key, 'registry', ARGV[3], 'progress', ARGV[4], 'created', now)
elseif ARGV[4] ~= '{}' then
  redis.call('HSET', key, 'progress', ARGV[4])
end
redis.call('HSET', key, 'state', 'waiting', 'updated', now, 'tries', 0)
redis.call('HDEL', key, 'held', 'said')
redis.call('PERSIST', key)
redis.call('ZREM', root .. 'chores:ended', ARGV[2])
redis.call('ZADD', root .. 'chores', due, ARGV[2])
return 1
