#!lua flags=allow-oom
-- Write a small note of the leader's or a step's, memory or none. ARGV: root, 'mended' and what and subject, or 'full' and seconds
if ARGV[2] == 'full' then
  redis.call('SET', root .. 'full', '1', 'EX', ARGV[3])
else
  redis.call('RPUSH', root .. 'mended', ARGV[3] .. ' ' .. ARGV[4])
  redis.call('LTRIM', root .. 'mended', -1000, -1)
end
return 1
