#!lua flags=allow-oom
-- A tag of a repository is wanted no more, unless it is wanted to be something else by now. ARGV: root, repository, tag, digest
-- Answers 1, or 0 where somebody wants it to be something else.
local key = root .. 'tags:' .. ARGV[2]
local wanted = redis.call('HGET', key, ARGV[3])
if not wanted then return 1 end
if string.match(wanted, '^%d+ (%S+)') ~= ARGV[4] then return 0 end
redis.call('HDEL', key, ARGV[3])
return 1
