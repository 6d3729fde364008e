#!lua flags=allow-oom
-- Forget finished builds whose time has come, a few at a time. ARGV: root, how many at most. Answers how many went.
local gone = redis.call('ZRANGEBYSCORE', root .. 'finished', '-inf', now_ms(), 'LIMIT', 0, ARGV[2])
for _, id in ipairs(gone) do
  local key = root .. 'b:' .. id
  local project, state, attempt, idempotency = unpack(redis.call('HMGET', key, 'project', 'state', 'attempt', 'key'))
  if project then
    index('ZREM', id, project, state)
    for number = 1, tonumber(attempt or '0') do
      local name = id .. ':' .. number
      local size = tonumber(redis.call('HGET', root .. 'logs:sizes', name) or '0')
      if size > 0 then
        redis.call('HINCRBY', root .. 'logs:sizes', '', -size)
        redis.call('HDEL', root .. 'logs:sizes', name)
      end
      redis.call('ZREM', root .. 'logs', name)
      redis.call('DEL', root .. 'log:' .. name)
    end
    if idempotency and redis.call('GET', root .. 'idem:' .. project .. ':' .. idempotency) == id then
      redis.call('DEL', root .. 'idem:' .. project .. ':' .. idempotency)
    end
    redis.call('DEL', key)
  end
  redis.call('ZREM', root .. 'tags:unsettled', id)
  redis.call('ZREM', root .. 'finished', id)
end
return #gone
