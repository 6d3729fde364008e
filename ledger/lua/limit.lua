#!lua flags=allow-oom
-- Set a limit by hand, or give it back to the projects file. Holds from the next admission on.
-- ARGV: root, field ('' for all, a project, 'class|' and a class, 'key|' and a project), limit or '', event stream length, event
local field = ARGV[2]
if ARGV[3] == '' then redis.call('HDEL', root .. 'limits:set', field) else redis.call('HSET', root .. 'limits:set', field, ARGV[3]) end
set_gate(field)
if string.sub(field, 1, 4) == 'key|' then
  local project = string.sub(field, 5)
  -- Only a key that holds slots can be full, so no other lane can open or close.
  for _, key in ipairs(redis.call('SMEMBERS', root .. 'keys:' .. project)) do refresh_key(project, key) end
elseif field ~= '' and string.sub(field, 1, 6) ~= 'class|' then
  refresh_project(field)
end
publish_event(ARGV[5], ARGV[4])
return limit_of(field)
