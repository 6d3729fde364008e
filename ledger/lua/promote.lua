#!lua flags=allow-oom
-- Raise what mutable tags of a repository are wanted to be, for a promotion that its chore's worker is at: a later push, or promotion, wins.
-- ARGV: root, chore, its fence, the promotion's sequence, digest, who says so, repository, tag ...
-- Answers: {'lost'}: another worker has taken the chore on | {'ok', per tag what is wanted now: 'sequence digest by'}
local fence, state = unpack(redis.call('HMGET', root .. 'chore:' .. ARGV[2], 'fence', 'state'))
if fence ~= ARGV[3] or state ~= 'waiting' then return {'lost'} end
local answer = {'ok'}
for at = 8, #ARGV do answer[#answer + 1] = raise_wanted(ARGV[7], ARGV[at], ARGV[4], ARGV[5], ARGV[6]) end
return answer
