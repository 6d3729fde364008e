#!lua
-- Take builds in: all of them or none. Not allowed when memory is short, so that what runs can still finish.
-- ARGV: root, project, version of its policy, event stream length, delivery id or '', its seconds to live, ref or '', commit or '', then per build:
--       id, idempotency key or '', its seconds to live, request, platforms, priority, queued deadline (ms), event
-- Answers: {'policy', version, stored project}: the caller's copy is out of date | {'delivery'} | {'repeat'}: seen before
--          {'ok', now, {id, sequence, position, 1 if new} ...}
local project, version, length, delivery, ref, commit = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[7], ARGV[8]
local current = redis.call('HGET', root .. 'projects:versions', project)
if current ~= version then
  return {'policy', current, redis.call('HGET', root .. 'projects', project)}
end
if delivery ~= '' and redis.call('EXISTS', root .. 'delivery:' .. project .. ':' .. delivery) == 1 then return {'delivery'} end
if ref ~= '' and redis.call('HGET', root .. 'accepted:' .. project, ref) == commit then return {'repeat'} end

local now = now_ms()
local answer = {'ok', now}
for at = 9, #ARGV, 8 do
  local id, key, key_ttl, request, platforms, priority, deadline, event = unpack(ARGV, at, at + 7)
  local record = root .. 'b:' .. id
  local first = key ~= '' and redis.call('GET', root .. 'idem:' .. project .. ':' .. key)
  -- An id that is known: the call was sent again, since the answer to the first did not come.
  if not first and redis.call('EXISTS', record) == 1 then first = id end
  if first then
    answer[#answer + 1] = {first, 0, 0, 0}
  else
    local sequence = redis.call('INCR', root .. 'seq')
    redis.call('HSET', record, 'request', request, 'state', 'queued', 'version', 1, 'sequence', sequence, 'project', project,
      'platforms', platforms, 'priority', priority, 'created', now, 'updated', now, 'due', now + deadline, 'attempt', 0)
    if key ~= '' then
      redis.call('HSET', record, 'key', key)
      redis.call('SET', root .. 'idem:' .. project .. ':' .. key, id, 'EX', key_ttl)
    end
    index('ZADD', id, project, 'queued')
    redis.call('ZADD', root .. 'due', now + deadline, id)
    enqueue(id, project, priority, sequence)
    publish_event(event, length)
    answer[#answer + 1] = {id, sequence, redis.call('ZRANK', root .. 'q:' .. project, id), 1}
  end
end
if delivery ~= '' then redis.call('SET', root .. 'delivery:' .. project .. ':' .. delivery, '1', 'EX', ARGV[6]) end
if ref ~= '' then redis.call('HSET', root .. 'accepted:' .. project, ref, commit) end
return answer
