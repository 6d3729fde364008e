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
    enqueue(id, project, class, key or '', score)
  end
end
if redis.call('HEXISTS', root .. 'paused', '') == 1 then return {'paused'} end
local room = limit_of('') - redis.call('ZCARD', root .. 'slots:')
if room <= 0 then return {'full'} end

local rooms = {}  -- capacity class -> how many more slots it has
local full = false
for _, class in ipairs(redis.call('HKEYS', root .. 'classes')) do
  if redis.call('HEXISTS', root .. 'paused', 'class|' .. class) == 0 then
    local limit = limit_of('class|' .. class)
    rooms[class] = limit and limit - redis.call('ZCARD', root .. 'slots|class|' .. class) or room
    if rooms[class] <= 0 then full, rooms[class] = true, nil end
  end
end

-- The project with the least virtual time, at a rank, over the classes with room; of its classes the one whose best build goes first.
local function choose(rank)
  local best
  for class in pairs(rooms) do
    local turn = redis.call('ZRANGE', root .. 'turns:' .. class, rank, rank, 'WITHSCORES')
    if turn[1] then
      local found = {project = turn[1], class = class, clock = tonumber(turn[2])}
      if not best or found.clock < best.clock or (found.clock == best.clock and found.project <= best.project) then
        local head = redis.call('ZRANGE', root .. 'open:' .. found.project .. '|' .. class, 0, 0, 'WITHSCORES')
        found.key, found.score = head[1], tonumber(head[2])
        if not best or found.project ~= best.project or not best.score or (found.score and found.score < best.score) then best = found end
      end
    end
  end
  return best
end

local function admit(found)
  local project, class, key = found.project, found.class, found.key
  local lane = project .. '|' .. class .. '|' .. (key or '')
  local id = key and redis.call('ZRANGE', root .. 'lane:' .. lane, 0, 0)[1]
  if not id then  -- an index that is wrong must not stop everybody
    redis.call('ZREM', root .. 'open:' .. project .. '|' .. class, key or '')
    refresh_turn(project, class)
    return {'again'}
  end
  local record = root .. 'b:' .. id
  local state, attempt, platforms = unpack(redis.call('HMGET', record, 'state', 'attempt', 'platforms'))
  if state ~= 'queued' then
    dequeue(id, project, class, key)
    return {'again'}
  end
  attempt = (attempt or 0) + 1
  local taken = members(id, attempt, platforms)
  local wanted = scopes(project, class, key)
  if #taken > 1 then  -- all platforms or none; for one there is room, or the project would have no turn and the lane not be open
    if #taken > room or #taken > rooms[class] then return nil end
    for at = 2, #wanted do
      local limit = limit_of(wanted[at][2])
      if limit and redis.call('ZCARD', root .. wanted[at][1]) + #taken > limit then return nil end
    end
  end
  local slots = {}
  for at, member in ipairs(taken) do slots[2 * at - 1], slots[2 * at] = now, member end
  for _, scope in ipairs(wanted) do redis.call('ZADD', root .. scope[1], unpack(slots)) end
  if key ~= '' then redis.call('SADD', root .. 'keys:' .. project, key) end
  -- Charged now with what the project's builds usually take, and put right when the slots come back.
  local charged = tonumber(redis.call('HGET', root .. 'cost', project) or '60000')
  redis.call('HSET', record, 'state', 'starting', 'attempt', attempt, 'updated', now, 'admitted', now, 'charged', charged, 'due', now + ARGV[2])
  -- Why the attempt before it ended is kept with that attempt; a reason on a build that holds slots means that this one is given up.
  redis.call('HDEL', record, 'reason', 'message', 'started')
  redis.call('HINCRBY', record, 'version', 1)
  redis.call('ZADD', root .. 'due', now + ARGV[2], id)
  index('ZREM', id, project, 'queued')
  index('ZADD', id, project, 'starting')
  local weight = tonumber(redis.call('HGET', root .. 'weights', project) or '1')
  local before = tonumber(redis.call('HGET', root .. 'clock', '') or '0')
  redis.call('HSET', root .. 'clock', '', math.max(before, found.clock), project, found.clock + #taken * charged / weight)
  dequeue(id, project, class, key)
  if key ~= '' then refresh_key(project, key) end
  refresh_project(project)
  redis.call('PUBLISH', record, 'starting')
  return {'admitted', id, redis.call('HGETALL', record)}
end

for rank = 0, 9 do
  local found = choose(rank)
  if not found then break end
  local answer = admit(found)
  if answer then return answer end
  full = true
end
return {full and 'full' or 'idle'}
