#!lua flags=allow-oom
-- Admit one build: take its slots and make it `starting`. The cost grows with neither the queue nor the blocked: a project at its
-- limit is not among the turns.
-- ARGV: root, ms until the start is looked at again
-- Answers: {'admitted', id, record's fields} | {'full'}: the global limit | {'idle'}: nothing to admit
local now = now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', root .. 'delayed', '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', root .. 'delayed', id)
  local project, priority, sequence = unpack(redis.call('HMGET', root .. 'b:' .. id, 'project', 'priority', 'sequence'))
  if project then
    redis.call('HDEL', root .. 'b:' .. id, 'not_before')
    enqueue(id, project, priority, sequence)
  end
end
local limit = tonumber(redis.call('HGET', root .. 'limits', '') or '20')
for _ = 1, 64 do
  local turn = redis.call('ZRANGE', root .. 'turns', 0, 0, 'WITHSCORES')
  local project = turn[1]
  if not project then return {'idle'} end
  local id = redis.call('ZRANGE', root .. 'q:' .. project, 0, 0)[1]
  local state, attempt, platforms = unpack(redis.call('HMGET', root .. 'b:' .. (id or ''), 'state', 'attempt', 'platforms'))
  if state ~= 'queued' then
    if id then redis.call('ZREM', root .. 'q:' .. project, id) end
    refresh_turn(project)
  else
    local taken = members(id, attempt + 1, platforms)
    if redis.call('ZCARD', root .. 'slots:') + #taken > limit then return {'full'} end
    for _, member in ipairs(taken) do
      redis.call('ZADD', root .. 'slots:', now, member)
      redis.call('ZADD', root .. 'slots:' .. project, now, member)
    end
    redis.call('HSET', root .. 'b:' .. id, 'state', 'starting', 'attempt', attempt + 1, 'updated', now, 'due', now + ARGV[2])
    -- Why the attempt before it ended is kept with that attempt; a reason on a build that holds slots means that this one is given up.
    redis.call('HDEL', root .. 'b:' .. id, 'reason', 'message')
    redis.call('HINCRBY', root .. 'b:' .. id, 'version', 1)
    redis.call('ZADD', root .. 'due', now + ARGV[2], id)
    index('ZREM', id, project, 'queued')
    index('ZADD', id, project, 'starting')
    redis.call('ZREM', root .. 'q:' .. project, id)
    local clock = tonumber(turn[2])
    local weight = tonumber(redis.call('HGET', root .. 'weights', project) or '1')
    redis.call('HSET', root .. 'clock', '', clock, project, clock + #taken / weight)
    redis.call('ZREM', root .. 'turns', project)
    refresh_turn(project)
    redis.call('PUBLISH', root .. 'b:' .. id, 'starting')
    return {'admitted', id, redis.call('HGETALL', root .. 'b:' .. id)}
  end
end
return {'idle'}
