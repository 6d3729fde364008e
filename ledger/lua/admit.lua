#!lua flags=allow-oom
-- Admit one build: take its slots in every scope and make it `starting`. The cost grows with neither the queue nor the blocked: a project
-- at its limit has no turn, and a concurrency key at its limit or a held registry no open lane. It grows with the capacity classes, of which there are few.
-- ARGV: root, ms until the start is looked at again
-- Answers: {'admitted', id, record's fields} | {'paused'} | {'full'}: the global limit, or a class's | {'idle'}: nothing to admit | {'again'}: call again
local now = now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', root .. 'delayed', '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', root .. 'delayed', id)
  local project, class, lane, score = unpack(redis.call('HMGET', root .. 'b:' .. id, 'project', 'class', 'lane', 'score'))
  if project then
    redis.call('HDEL', root .. 'b:' .. id, 'not_before')
    enqueue(id, project, class, lane or '|', score)
  end
end
-- Whoever holds a registry and is no more does not hold it for ever.
for _, host in ipairs(redis.call('ZRANGEBYSCORE', root .. 'holds:until', '-inf', now, 'LIMIT', 0, 10)) do end_hold(host, now) end

-- How many more slots there are in all, and in each capacity class for which builds wait.
local classes = redis.call('HKEYS', root .. 'classes')
local fields = {'', 'p|'}
for _, class in ipairs(classes) do
  fields[#fields + 1] = 'class|' .. class
  fields[#fields + 1] = 'p|class|' .. class
end
local gates = redis.call('HMGET', root .. 'gates', unpack(fields))
if gates[2] then return {'paused'} end
local room = tonumber(gates[1] or '20') - redis.call('ZCARD', root .. 'slots:')
if room <= 0 then return {'full'} end
local rooms, full = {}, false
for at, class in ipairs(classes) do
  local limit, paused = gates[2 * at + 1], gates[2 * at + 2]
  if not paused then
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
        found.lane, found.score = head[1], tonumber(head[2])
        if not best or found.project ~= best.project or not best.score or (found.score and found.score < best.score) then best = found end
      end
    end
  end
  return best
end

-- All platforms or none. For one there is room: else the project would have no turn, or the lane not be open.
local function fits(found, wanted, number)
  if number == 1 then return true end
  if number > room or number > rooms[found.class] then return false end
  for at = 2, #wanted do
    local limit = limit_of(wanted[at][2])
    if limit and redis.call('ZCARD', root .. wanted[at][1]) + number > limit then return false end
  end
  return true
end

local function admit(found)
  local project, class, lane = found.project, found.class, found.lane or '|'
  local key = key_of(lane)
  local open = root .. 'open:' .. project .. '|' .. class
  local waits = root .. 'lane:' .. project .. '|' .. class .. '|' .. lane
  local first = found.lane and redis.call('ZRANGE', waits, 0, 1, 'WITHSCORES') or {}
  local id, following = first[1], first[4]
  if not id then  -- an index that is wrong must not stop everybody
    redis.call('ZREM', open, lane)
    refresh_turn(project, class)
    return {'again'}
  end
  local record = root .. 'b:' .. id
  local answer = redis.call('HGETALL', record)
  local read = {}
  for at = 1, #answer, 2 do read[answer[at]] = answer[at + 1] end
  if read.state ~= 'queued' then
    dequeue(id, project, class, lane)
    return {'again'}
  end
  local attempt = (read.attempt or 0) + 1
  local taken, wanted = members(id, attempt, read.platforms), scopes(project, class, lane)
  if not fits(found, wanted, #taken) then return nil end
  local slots = {}
  for at, member in ipairs(taken) do slots[2 * at - 1], slots[2 * at] = now, member end
  for _, scope in ipairs(wanted) do redis.call('ZADD', root .. scope[1], unpack(slots)) end
  -- Charged now with what the project's builds usually take, and put right when the slots come back.
  local clock, cost, weight = unpack(redis.call('HMGET', root .. 'shares', '', 'cost|' .. project, 'weight|' .. project))
  local charged = tonumber(cost or '60000')
  local own = found.clock + #taken * charged / tonumber(weight or '1')
  redis.call('HSET', root .. 'shares', '', math.max(tonumber(clock or '0'), found.clock), project, own)
  local changes = {'state', 'starting', 'version', read.version + 1, 'attempt', attempt, 'updated', now, 'admitted', now,
    'charged', charged, 'due', now + ARGV[2]}
  redis.call('HSET', record, unpack(changes))
  -- Why the attempt before it ended is kept with that attempt; a reason on a build that holds slots means that this one is given up.
  if attempt > 1 then redis.call('HDEL', record, 'reason', 'message', 'started') end
  redis.call('ZADD', root .. 'due', now + ARGV[2], id)
  index('ZREM', id, project, 'queued')
  index('ZADD', id, project, 'starting')
  redis.call('ZREM', root .. 'q:' .. project, id)
  redis.call('ZREM', waits, id)
  if not following then
    redis.call('ZREM', open, lane)
  elseif key == '' then
    redis.call('ZADD', open, following, lane)
  end
  if key ~= '' then
    redis.call('SADD', root .. 'keys:' .. project, key)
    refresh_key(project, key)
  end
  local going = may_go(project)
  for _, other in ipairs(redis.call('HKEYS', root .. 'classes:' .. project)) do
    if going and ((other == class and following and key == '') or redis.call('EXISTS', root .. 'open:' .. project .. '|' .. other) == 1) then
      redis.call('ZADD', root .. 'turns:' .. other, own, project)
    else
      redis.call('ZREM', root .. 'turns:' .. other, project)
    end
  end
  if not following then count_lane(project, class, lane, -1) end
  redis.call('PUBLISH', record, 'starting')
  local told = {}
  for at = 1, #answer, 2 do
    if answer[at] ~= 'reason' and answer[at] ~= 'message' and answer[at] ~= 'started' then
      told[#told + 1], told[#told + 2] = answer[at], answer[at + 1]
    end
  end
  for _, word in ipairs(changes) do told[#told + 1] = word end  -- last, and so before what was read
  return {'admitted', id, told}
end

for rank = 0, 9 do
  local found = choose(rank)
  if not found then break end
  local answer = admit(found)
  if answer then return answer end
  full = true
end
return {full and 'full' or 'idle'}
