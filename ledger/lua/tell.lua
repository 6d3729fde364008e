#!lua flags=allow-oom
-- Put an event into the stream that no change of a build carries, and take out of `mended` what it tells. Sent again it does nothing more.
-- ARGV: root, lease, fence, event stream length, event, how many of `mended`. Answers 1, or 0 where the fence is lost.
if redis.call('HGET', root .. 'lease:' .. ARGV[2], 'fence') ~= ARGV[3] then return 0 end
if redis.call('GET', root .. 'told') == ARGV[5] then return 1 end
publish_event(ARGV[5], ARGV[4])
redis.call('SET', root .. 'told', ARGV[5], 'EX', 600)
if ARGV[6] ~= '0' then redis.call('LTRIM', root .. 'mended', ARGV[6], -1) end
return 1
