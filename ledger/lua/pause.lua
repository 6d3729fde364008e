#!lua flags=allow-oom
-- Stop or go on admitting. What was submitted stays, what runs goes on. ARGV: root, field ('' for all, a project, 'class|' and a class),
--       '1' to pause, '' to go on, event stream length, event. Answers 1 if that changed anything.
local field = ARGV[2]
local changed
if ARGV[3] == '' then
  changed = redis.call('HDEL', root .. 'paused', field)
else
  changed = redis.call('HSETNX', root .. 'paused', field, now_ms())
end
if changed == 0 then return 0 end
if field ~= '' and string.sub(field, 1, 6) ~= 'class|' then refresh_project(field) end
publish_event(ARGV[5], ARGV[4])
return 1
