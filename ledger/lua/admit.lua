#!lua flags=allow-oom
-- Admit one build: take its slots in every scope and make it `starting`. The cost grows with neither the queue nor the blocked: a project
-- at its limit has no turn, and a concurrency key at its limit no open lane. It grows with the capacity classes, of which there are few.
-- ARGV: root, ms until the start is looked at again
-- Answers: {'admitted', id, record's fields} | {'paused'} | {'full'}: the global limit, or a class's | {'idle'}: nothing to admit | {'again'}: call again
local now = now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', root .. 'delayed', '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', root .. 'delayed', id)
  local project, class, key, score = unpack(redis.call('HMGET', root .. 'b:' .. id, 'project', 'class', 'lane', 'score'))
  if project then
    redis.call('HDEL', root .. 'b:' .. id, 'not_before')
    enqueue(id, project, class, key, score)
  end
end
if redis.call('HEXISTS', root .. 'paused', '') == 1 then return {'paused'} end
if redis.call('ZCARD', root .. 'slots:') >= limit_of('') then return {'full'} end

-- The class with room in which the project with the least virtual time waits.
local project, class, clock
local full = false
for _, name in ipairs(redis.call('SMEMBERS', root .. 'classes')) do
  local turn = redis.call('ZRANGE', root .. 'turns:' .. name, 0, 0, 'WITHSCORES')
  if turn[1] and redis.call('HEXISTS', root .. 'paused', 'class|' .. name) == 0 then
    local limit = limit_of('class|' .. name)
    if limit and redis.call('ZCARD', root .. 'slots|class|' .. name) >= limit then
      full = true
    elseif not clock or tonumber(turn[2]) < clock or (tonumber(turn[2]) == clock and turn[1] < project) then
      project, class, clock = turn[1], name, tonumber(turn[2])
    end
  end
end
if not project then return {full and 'full' or 'idle'} end

local key = redis.call('ZRANGE', root .. 'open:' .. project .. '|' .. class, 0, 0)[1]
local id = key and redis.call('ZRANGE', root .. 'lane:' .. project .. '|' .. class .. '|' .. key, 0, 0)[1]
local state, attempt, platforms = unpack(redis.call('HMGET', root .. 'b:' .. (id or ''), 'state', 'attempt', 'platforms'))
if state ~= 'queued' then  -- cannot be; but if it were, it must not stop everybody
  if id then dequeue(id, project, class, key) else refresh_turn(project, class) end
  return {'again'}
end
-- All platforms or none.
local taken = members(id, attempt + 1, platforms)
for _, scope in ipairs(scopes(project, class, key)) do
  local limit = scope[2]
  if limit and redis.call('ZCARD', scope[1]) + #taken > limit then return {'full'} end
end
for _, scope in ipairs(scopes(project, class, key)) do
  for _, member in ipairs(taken) do redis.call('ZADD', scope[1], now, member) end
end
if key ~= '' then redis.call('SADD', root .. 'keys:' .. project, key) end
redis.call('HSET', root .. 'b:' .. id, 'state', 'starting', 'attempt', attempt + 1, 'updated', now, 'due', now + ARGV[2])
-- Why the attempt before it ended is kept with that attempt; a reason on a build that holds slots means that this one is given up.
redis.call('HDEL', root .. 'b:' .. id, 'reason', 'message')
redis.call('HINCRBY', root .. 'b:' .. id, 'version', 1)
redis.call('ZADD', root .. 'due', now + ARGV[2], id)
index('ZREM', id, project, 'queued')
index('ZADD', id, project, 'starting')
local weight = tonumber(redis.call('HGET', root .. 'weights', project) or '1')
local before = tonumber(redis.call('HGET', root .. 'clock', '') or '0')
redis.call('HSET', root .. 'clock', '', math.max(before, clock), project, clock + #taken / weight)
for _, name in ipairs(redis.call('SMEMBERS', root .. 'classes:' .. project)) do redis.call('ZREM', root .. 'turns:' .. name, project) end
dequeue(id, project, class, key)
if key ~= '' then refresh_key(project, key) end
refresh_project(project)
redis.call('PUBLISH', root .. 'b:' .. id, 'starting')
return {'admitted', id, redis.call('HGETALL', root .. 'b:' .. id)}
