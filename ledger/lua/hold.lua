#!lua flags=allow-oom
-- Hold registries: what writes to them is not admitted any more; what runs goes on. A hold ends by itself at its time.
-- ARGV: root, who holds, ms to live, event stream length, event, a chore ('' for none) and its fence, host ...
-- Answers {since}: held, or held longer | {0, host, who}: another holds it | {-1}: the chore was taken on by another, or has ended
local by, now = ARGV[2], now_ms()
local since = now
if ARGV[6] ~= '' and redis.call('HGET', root .. 'chore:' .. ARGV[6], 'fence') ~= ARGV[7] then return {-1} end
for at = 8, #ARGV do
  local held = redis.call('HGET', root .. 'holds', ARGV[at])
  local begun, ends, other = string.match(held or '', '^(%d+) (%d+) (.*)$')
  if begun and other ~= by and tonumber(ends) > now then return {0, ARGV[at], other} end
  if begun then since = math.min(since, tonumber(begun)) end
end
local ends, fresh = now + tonumber(ARGV[3]), false
for at = 8, #ARGV do
  local host = ARGV[at]
  local begun = string.match(redis.call('HGET', root .. 'holds', host) or '', '^%d+')
  local hold = string.format('%d %d %s', tonumber(begun or now), ends, by)
  redis.call('HSET', root .. 'holds', host, hold)
  redis.call('HSET', root .. 'gates', 'h|' .. host, hold)
  redis.call('ZADD', root .. 'holds:until', ends, host)
  if not begun then
    fresh = true
    refresh_noted('lanes:' .. host)
  end
end
if fresh then publish_event(ARGV[5], ARGV[4]) end
return {since}
