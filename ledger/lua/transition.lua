#!lua flags=allow-oom
-- Write one change of a build: record, indexes, slots, due time and events in one atomic call.
-- ARGV: root, id, version that the caller has read, lease or '', its fence, new state, ms until due ('' for none), ms until it may be
--       admitted ('' for at once), '1' to queue it behind all that wait now, ms to keep it when final, event stream length,
--       number of fields, field, value ... ('' deletes), event ...
-- Answers: {'ok', version, now} | {'missing'} | {'version', current} | {'fence'} | {'ended', state}
local id, expected, lease, fence, state = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local key = root .. 'b:' .. id
local project, old, version, attempt, platforms, score, class, lane, admitted, charged =
  unpack(redis.call('HMGET', key, 'project', 'state', 'version', 'attempt', 'platforms', 'score', 'class', 'lane', 'admitted', 'charged'))
if not old then return {'missing'} end
lane = lane or '|'
local limited = key_of(lane)
if lease ~= '' and redis.call('HGET', root .. 'lease:' .. lease, 'fence') ~= fence then return {'fence'} end
if old == 'succeeded' or old == 'failed' or old == 'cancelled' or old == 'superseded' then return {'ended', old} end
if version ~= expected then return {'version', version} end

local now = now_ms()
local final = state == 'succeeded' or state == 'failed' or state == 'cancelled' or state == 'superseded'
local fields = tonumber(ARGV[12])
for at = 13, 12 + 2 * fields, 2 do
  if ARGV[at + 1] == '' then redis.call('HDEL', key, ARGV[at]) else redis.call('HSET', key, ARGV[at], ARGV[at + 1]) end
end
redis.call('HSET', key, 'state', state, 'updated', now)
redis.call('HINCRBY', key, 'version', 1)
if state ~= old then
  index('ZREM', id, project, old)
  index('ZADD', id, project, state)
end
-- Only `starting` and `running` hold slots: to leave them is to give the slots back, and to be charged for the time that they were held.
if state ~= 'starting' and state ~= 'running' and (old == 'starting' or old == 'running') then
  local held = members(id, attempt, platforms)
  for _, scope in ipairs(scopes(project, class, lane)) do redis.call('ZREM', root .. scope[1], unpack(held)) end
  local took = math.max(0, now - admitted)
  local weight, usual = unpack(redis.call('HMGET', root .. 'shares', 'weight|' .. project, 'cost|' .. project))
  redis.call('HINCRBYFLOAT', root .. 'shares', project, string.format('%.3f', (took - charged) * #held / (weight or 1)))
  redis.call('HSET', root .. 'shares', 'cost|' .. project, math.floor(0.8 * (usual or took) + 0.2 * took))
  if limited ~= '' then
    if redis.call('EXISTS', root .. 'slots|key|' .. project .. '|' .. limited) == 0 then redis.call('SREM', root .. 'keys:' .. project, limited) end
    refresh_key(project, limited)
  end
  refresh_project(project)
end
-- How long the project's builds run, for estimates: of those that did what they were to do.
if old == 'running' and (state == 'publishing' or state == 'succeeded') then
  local started = redis.call('HGET', key, 'started')
  if started then
    redis.call('LPUSH', root .. 'took:' .. project, math.max(0, now - started))
    redis.call('LTRIM', root .. 'took:' .. project, 0, 49)
  end
end
if old == 'queued' and state ~= 'queued' then dequeue(id, project, class, lane) end
if state == 'queued' and old ~= 'queued' then
  if ARGV[9] == '1' then
    score = string.format('%.3f', now)
    redis.call('HSET', key, 'score', score)
  end
  if ARGV[8] ~= '' then
    redis.call('ZADD', root .. 'delayed', now + ARGV[8], id)
    redis.call('HSET', key, 'not_before', now + ARGV[8])
  else
    enqueue(id, project, class, lane, score)
  end
end
if final then
  redis.call('ZREM', root .. 'due', id)
  redis.call('HDEL', key, 'due', 'not_before')
  redis.call('HSET', key, 'finished', now)
  redis.call('ZADD', root .. 'finished', now + ARGV[10], id)
  -- A step that was stopped while it moved tags, and whose work another has ended, may wake up: its tags are looked at once more.
  if state == 'succeeded' and redis.call('HGET', key, 'doubtful') then
    redis.call('ZADD', root .. 'tags:unsettled', now + 60000, id)
  else
    redis.call('ZREM', root .. 'tags:unsettled', id)
  end
elseif ARGV[7] ~= '' then
  redis.call('ZADD', root .. 'due', now + ARGV[7], id)
  redis.call('HSET', key, 'due', now + ARGV[7])
end
for at = 13 + 2 * fields, #ARGV do publish_event(ARGV[at], ARGV[11]) end
redis.call('PUBLISH', key, state)
return {'ok', version + 1, now}
