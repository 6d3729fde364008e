#!lua flags=no-writes
-- Why a queued build waits, as things stand at one moment. ARGV: root, id
-- Answers: {} where it is not queued | {place in its project's queue or -1, {{field, taken, limit or -1, paused or '', {members}} ...},
--          {recent durations of the project's builds, ms}}; members: who holds the slots of a full scope, at most five
local project, state, class, key = unpack(redis.call('HMGET', root .. 'b:' .. ARGV[2], 'project', 'state', 'class', 'lane'))
if state ~= 'queued' then return {} end
local fields = {'', project, 'class|' .. class, 'key|' .. project}
local found = {}
for at, scope in ipairs(scopes(project, class, key)) do
  local taken, limit = redis.call('ZCARD', scope[1]), scope[2] or -1
  local holders = limit >= 0 and taken >= limit and redis.call('ZRANGE', scope[1], 0, 4) or {}
  found[at] = {fields[at], taken, limit, redis.call('HGET', root .. 'paused', fields[at]) or '', holders}
end
local place = redis.call('ZRANK', root .. 'q:' .. project, ARGV[2])
return {place or -1, found, redis.call('LRANGE', root .. 'took:' .. project, 0, -1)}
