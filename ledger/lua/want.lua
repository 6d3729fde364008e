#!lua flags=allow-oom
-- Raise what tags of a repository are wanted to be: a later sequence wins, an earlier one changes nothing.
-- ARGV: root, repository, sequence, digest, build, tag ... Answers per tag what is wanted now: 'sequence digest build'
local answer = {}
for at = 6, #ARGV do
  local key = root .. 'tags:' .. ARGV[2]
  local wanted = redis.call('HGET', key, ARGV[at])
  if not wanted or tonumber(string.match(wanted, '^%d+')) <= tonumber(ARGV[3]) then
    wanted = ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. ARGV[5]
    redis.call('HSET', key, ARGV[at], wanted)
  end
  answer[#answer + 1] = wanted
end
return answer
