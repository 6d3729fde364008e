#!lua flags=allow-oom
-- Stop or go on admitting. What was submitted stays, what runs goes on. ARGV: root, field ('' for all, a project, 'class|' and a class),
--       '1' to pause, '' to go on, event stream length, event. Answers 1 if that changed anything.
local field, now = ARGV[2], now_ms()
local since = redis.call('HGET', root .. 'paused', field)
if (ARGV[3] == '1') == (since and true or false) then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', root .. 'paused', field)
  redis.call('HDEL', root .. 'gates', 'p|' .. field)
  -- Time that a build waited for this is not counted against its deadline.
  redis.call('RPUSH', root .. 'pauses:' .. field, since .. ' ' .. now)
  redis.call('LTRIM', root .. 'pauses:' .. field, -100, -1)
else
  redis.call('HSET', root .. 'paused', field, now)
  redis.call('HSET', root .. 'gates', 'p|' .. field, now)
end
if field ~= '' and string.sub(field, 1, 6) ~= 'class|' then refresh_project(field) end
publish_event(ARGV[5], ARGV[4])
return 1
