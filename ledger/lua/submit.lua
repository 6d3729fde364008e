#!lua
-- Take builds in: all of them or none. Not allowed when memory is short, so that what runs can still finish.
-- ARGV: root, project, version of its policy, event stream length, delivery id or '', its seconds to live, ref or '', commit or '',
--       how many of the project may wait or '', namespace or '', then per build: id, idempotency key or '', its seconds to live, request,
--       platforms, capacity class, lane, priority, queued deadline (ms), image or '' (a push's, which supersedes),
--       order or '' (a repeated build's place among the pushes), event
-- Answers: {'policy', version, stored project}: the caller's copy is out of date | {'delivery'} | {'repeat'}: seen before
--          {'long', how many wait}: the project's queue is full | {'full'}: memory is short
--          {'ok', now, {id, sequence, position, 1 if new} ...}
local project, version, length, delivery, ref, commit = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[7], ARGV[8]
local FIRST, EACH = 11, 12

-- What was taken in before is told, whatever has changed since: an id that is known is a call sent again, whose first answer was lost.
local known, new = {}, 0
for at = FIRST, #ARGV, EACH do
  local id, key = ARGV[at], ARGV[at + 1]
  known[at] = (key ~= '' and redis.call('GET', root .. 'idem:' .. project .. ':' .. key)) or (redis.call('EXISTS', root .. 'b:' .. id) == 1 and id)
  if not known[at] then new = new + 1 end
end
if new > 0 or #ARGV < FIRST then
  local current = redis.call('HGET', root .. 'projects:versions', project)
  if current ~= version then return {'policy', current, redis.call('HGET', root .. 'projects', project)} end
  if delivery ~= '' and redis.call('EXISTS', root .. 'delivery:' .. project .. ':' .. delivery) == 1 then return {'delivery'} end
  if ref ~= '' and redis.call('HGET', root .. 'accepted:' .. project, ref) == commit then return {'repeat'} end
  if redis.call('EXISTS', root .. 'full') == 1 then return {'full'} end
end

-- The build that a push makes needless: the last of the same image from the same ref, as long as it has not ended.
local function older(ref, image)
  local id = redis.call('HGET', root .. 'newest:' .. project .. '|' .. ref, image)
  local state, class, lane = unpack(redis.call('HMGET', root .. 'b:' .. (id or ''), 'state', 'class', 'lane'))
  if state == 'queued' or state == 'starting' or state == 'running' then return {id = id, state = state, class = class, lane = lane or '|'} end
end

if ARGV[9] ~= '' and new > 0 then
  local queued = redis.call('ZCARD', root .. 'i:' .. project .. ':queued')
  local more = new
  for at = FIRST, #ARGV, EACH do
    local before = not known[at] and ARGV[at + 9] ~= '' and older(ref, ARGV[at + 9])
    if before and before.state == 'queued' then more = more - 1 end
  end
  if more > 0 and queued + more > tonumber(ARGV[9]) then return {'long', queued} end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- An older build that waits will not be admitted any more, and is due at once, so that the leader writes its end. One that runs is marked
-- too; whether it is stopped is the project's choice, and the leader's work.
local function supersede(id, image)
  local before = older(ref, image)
  redis.call('HSET', root .. 'newest:' .. project .. '|' .. ref, image, id)
  redis.call('EXPIRE', root .. 'newest:' .. project .. '|' .. ref, 2592000)
  if not before then return end
  redis.call('HSET', root .. 'b:' .. before.id, 'superseded_by', id, 'due', now)
  redis.call('HINCRBY', root .. 'b:' .. before.id, 'version', 1)
  redis.call('ZADD', root .. 'due', now, before.id)
  if before.state == 'queued' then dequeue(before.id, project, before.class, before.lane) end
end

local answer = {'ok', now}
for at = FIRST, #ARGV, EACH do
  if known[at] then
    answer[#answer + 1] = {known[at], 0, 0, 0}
  else
    local id, key, key_ttl, request, platforms, class, lane, priority, deadline, image, order, event = unpack(ARGV, at, at + EACH - 1)
    local record = root .. 'b:' .. id
    local sequence = order ~= '' and order or redis.call('INCR', root .. 'seq')
    -- To the microsecond, so that of two taken in within one millisecond the first goes first.
    local score = string.format('%.3f', time[1] * 1000 + time[2] / 1000 - priority * 60000)
    local fields = {'request', request, 'state', 'queued', 'version', 1, 'sequence', sequence, 'project', project, 'platforms', platforms,
      'class', class, 'lane', lane, 'score', score, 'created', now, 'updated', now, 'due', now + deadline}
    local function also(name, value)
      if value ~= '' then fields[#fields + 1], fields[#fields + 2] = name, value end
    end
    also('namespace', ARGV[10])
    also('key', key)
    redis.call('HSET', record, unpack(fields))
    if key ~= '' then redis.call('SET', root .. 'idem:' .. project .. ':' .. key, id, 'EX', key_ttl) end
    index('ZADD', id, project, 'queued')
    redis.call('ZADD', root .. 'due', now + deadline, id)
    enqueue(id, project, class, lane, score)
    if image ~= '' then supersede(id, image) end
    publish_event(event, length)
    answer[#answer + 1] = {id, tonumber(sequence), redis.call('ZRANK', root .. 'q:' .. project, id), 1}
  end
end
if delivery ~= '' then redis.call('SET', root .. 'delivery:' .. project .. ':' .. delivery, '1', 'EX', ARGV[6]) end
if ref ~= '' then redis.call('HSET', root .. 'accepted:' .. project, ref, commit) end
return answer
