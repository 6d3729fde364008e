#!lua flags=allow-oom
-- Look at an unfinished build again later, unless somebody has written it since. ARGV: root, id, version that the caller has read or '' for
--       any, ms until then, '1' to hold it: the record says so too, as it does of a step that is at work
-- Answers 1, or 0 where it was written since, or has ended.
local key = root .. 'b:' .. ARGV[2]
local version = redis.call('HGET', key, 'version')
if not version or (ARGV[3] ~= '' and version ~= ARGV[3]) then return 0 end
if not redis.call('ZSCORE', root .. 'due', ARGV[2]) then return 0 end
local due = now_ms() + ARGV[4]
redis.call('ZADD', root .. 'due', due, ARGV[2])
if ARGV[5] == '1' then redis.call('HSET', key, 'due', due) end
return 1
