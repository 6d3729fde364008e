#!lua flags=allow-oom
-- Append a chunk to an attempt's log, dropping the oldest chunks of this log, then the oldest whole logs, to stay within the caps.
-- ARGV: root, lease or '', fence, build, attempt, chunk or '', time of its last line, '1' when the log is complete, cap per log, cap of all
-- Answers {'ok'} | {'fence'} | {'missing'}: the build is unknown, or its log was complete before
local lease, fence, id, attempt, chunk, cap, total_cap = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[9]), tonumber(ARGV[10])
if lease ~= '' and redis.call('HGET', root .. 'lease:' .. lease, 'fence') ~= fence then return {'fence'} end
local name = id .. ':' .. attempt
local key, sizes = root .. 'log:' .. name, root .. 'logs:sizes'
if redis.call('EXISTS', root .. 'b:' .. id) == 0 then return {'missing'} end
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last and last[2][1] == 'end' then return {'missing'} end
local now = now_ms()
-- The same lines up to the same microsecond: the call was sent again, since the answer to the first did not come.
local again = last and last[2][2] == chunk and last[2][4] == ARGV[7]
if chunk ~= '' and not again then
  redis.call('XADD', key, '*', 'lines', chunk, 'until', ARGV[7])
  local size = redis.call('HINCRBY', sizes, name, #chunk)
  local total = redis.call('HINCRBY', sizes, '', #chunk)
  while size > cap do
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    if not oldest or oldest[2][2] == chunk then break end
    redis.call('XDEL', key, oldest[1])
    size = redis.call('HINCRBY', sizes, name, -#oldest[2][2])
    total = redis.call('HINCRBY', sizes, '', -#oldest[2][2])
  end
  redis.call('ZADD', root .. 'logs', now, name)
  while total > total_cap do
    local victim = redis.call('ZRANGE', root .. 'logs', 0, 0)[1]
    if not victim or victim == name then break end
    total = redis.call('HINCRBY', sizes, '', -tonumber(redis.call('HGET', sizes, victim) or '0'))
    redis.call('DEL', root .. 'log:' .. victim)
    redis.call('ZREM', root .. 'logs', victim)
    redis.call('HDEL', sizes, victim)
  end
end
if ARGV[8] == '1' then redis.call('XADD', key, '*', 'end', '1') end
return {'ok'}
