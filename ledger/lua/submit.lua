#!lua
-- Take builds in: all of them or none. Not allowed when memory is short, so that what runs can still finish.
-- ARGV: root, project, version of its policy, event stream length, delivery id or '', its seconds to live, ref or '', commit or '',
--       how many of the project may wait or '', then per build: id, idempotency key or '', its seconds to live, request, platforms,
--       capacity class, concurrency key or '', priority, queued deadline (ms), image or '' (a push's, which supersedes), event
-- Answers: {'policy', version, stored project}: the caller's copy is out of date | {'delivery'} | {'repeat'}: seen before
--          {'long', how many wait}: the project's queue is full
--          {'ok', now, {id, sequence, position, 1 if new} ...}
local project, version, length, delivery, ref, commit = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[7], ARGV[8]
local current = redis.call('HGET', root .. 'projects:versions', project)
if current ~= version then
  return {'policy', current, redis.call('HGET', root .. 'projects', project)}
end
if delivery ~= '' and redis.call('EXISTS', root .. 'delivery:' .. project .. ':' .. delivery) == 1 then return {'delivery'} end
if ref ~= '' and redis.call('HGET', root .. 'accepted:' .. project, ref) == commit then return {'repeat'} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local most = tonumber(ARGV[9])
if most and redis.call('ZCARD', root .. 'i:' .. project .. ':queued') + (#ARGV - 9) / 11 > most then
  return {'long', redis.call('ZCARD', root .. 'i:' .. project .. ':queued')}
end

-- A newer push of the same image from the same ref: an older build that waits will not be admitted any more, and is due at once, so that
-- the leader writes its end. One that runs is marked too; whether it is stopped is the project's choice, and the leader's work.
local function supersede(id, project, ref, image, now)
  local newest = root .. 'newest:' .. project .. '|' .. ref
  local old = redis.call('HGET', newest, image)
  redis.call('HSET', newest, image, id)
  redis.call('EXPIRE', newest, 2592000)
  local record = root .. 'b:' .. (old or '')
  local state, class, lane = unpack(redis.call('HMGET', record, 'state', 'class', 'lane'))
  if state == 'queued' or state == 'starting' or state == 'running' then
    redis.call('HSET', record, 'superseded_by', id, 'due', now)
    redis.call('HINCRBY', record, 'version', 1)
    redis.call('ZADD', root .. 'due', now, old)
    if state == 'queued' then dequeue(old, project, class, lane) end
  end
end

local answer = {'ok', now}
for at = 10, #ARGV, 11 do
  local id, key, key_ttl, request, platforms, class, lane, priority, deadline, image, event = unpack(ARGV, at, at + 10)
  local record = root .. 'b:' .. id
  local first = key ~= '' and redis.call('GET', root .. 'idem:' .. project .. ':' .. key)
  -- An id that is known: the call was sent again, since the answer to the first did not come.
  if not first and redis.call('EXISTS', record) == 1 then first = id end
  if first then
    answer[#answer + 1] = {first, 0, 0, 0}
  else
    local sequence = redis.call('INCR', root .. 'seq')
    -- To the microsecond, so that of two taken in within one millisecond the first goes first.
    local score = string.format('%.3f', time[1] * 1000 + time[2] / 1000 - priority * 60000)
    redis.call('HSET', record, 'request', request, 'state', 'queued', 'version', 1, 'sequence', sequence, 'project', project,
      'platforms', platforms, 'class', class, 'lane', lane, 'score', score, 'created', now, 'updated', now, 'due', now + deadline, 'attempt', 0)
    if key ~= '' then
      redis.call('HSET', record, 'key', key)
      redis.call('SET', root .. 'idem:' .. project .. ':' .. key, id, 'EX', key_ttl)
    end
    index('ZADD', id, project, 'queued')
    redis.call('ZADD', root .. 'due', now + deadline, id)
    enqueue(id, project, class, lane, score)
    if image ~= '' then supersede(id, project, ref, image, now) end
    publish_event(event, length)
    answer[#answer + 1] = {id, sequence, redis.call('ZRANK', root .. 'q:' .. project, id), 1}
  end
end
if delivery ~= '' then redis.call('SET', root .. 'delivery:' .. project .. ':' .. delivery, '1', 'EX', ARGV[6]) end
if ref ~= '' then redis.call('HSET', root .. 'accepted:' .. project, ref, commit) end
return answer
