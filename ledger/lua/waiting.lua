#!lua flags=no-writes
-- Why a queued build waits, as things stand at one moment. ARGV: root, id
-- Answers: {} where it is not queued | {place in its project's queue or -1, place among those of its key, {{field, taken, limit or -1, paused or '', {members}} ...},
--          {recent durations of the project's builds, ms}, its weight, the weight of all that share with it, newer build or '', {held registry, its hold ...}}
--          members: who holds the slots of a full scope, at most five
local project, state, class, lane, newer = unpack(redis.call('HMGET', root .. 'b:' .. ARGV[2], 'project', 'state', 'class', 'lane', 'superseded_by'))
if state ~= 'queued' then return {} end
lane = lane or '|'
local found = {}
for at, scope in ipairs(scopes(project, class, lane)) do
  local taken, limit = redis.call('ZCARD', root .. scope[1]), limit_of(scope[2]) or -1
  local holders = limit >= 0 and taken >= limit and redis.call('ZRANGE', root .. scope[1], 0, 4) or {}
  found[at] = {scope[2], taken, limit, redis.call('HGET', root .. 'paused', scope[2]) or '', holders}
end
-- Of very many projects a hundred tell enough.
local weight = tonumber(redis.call('HGET', root .. 'shares', 'weight|' .. project) or '1')
local total, others = weight, redis.call('ZRANGE', root .. 'turns:' .. class, 0, 99)
for _, other in ipairs(others) do
  if other ~= project then total = total + (redis.call('HGET', root .. 'shares', 'weight|' .. other) or 1) end
end
if #others == 100 then total = total * redis.call('ZCARD', root .. 'turns:' .. class) / 100 end
local place = redis.call('ZRANK', root .. 'q:' .. project, ARGV[2])
local own = redis.call('ZRANK', root .. 'lane:' .. project .. '|' .. class .. '|' .. lane, ARGV[2])
return {place or -1, own or 0, found, redis.call('LRANGE', root .. 'took:' .. project, 0, -1), weight, math.floor(total), newer or '', holds_of(lane)}
