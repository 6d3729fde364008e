#!lua flags=allow-oom
-- Raise what mutable tags of a repository are wanted to be, for a build that publishes: a later push wins, an earlier one changes nothing.
-- ARGV: root, repository, build, version that the caller has read, digest, tag ...
-- Answers: {'missing'} | {'version', current}: somebody else publishes it | {'ok', per tag what is wanted now: 'sequence digest by'}
local sequence, version, state = unpack(redis.call('HMGET', root .. 'b:' .. ARGV[3], 'sequence', 'version', 'state'))
if not version then return {'missing'} end
if version ~= ARGV[4] or state ~= 'publishing' then return {'version', version} end
local answer = {'ok'}
for at = 6, #ARGV do answer[#answer + 1] = raise_wanted(ARGV[2], ARGV[at], sequence, ARGV[5], ARGV[3]) end
return answer
