#!lua flags=no-writes
-- A page of builds, newest first, as they all are at one moment: a build that changes its state meanwhile is neither missed nor doubled.
-- ARGV: root, project or '', '+' or '(' and the id before which to read on, how many at most, state ...
-- Answers: {{id, record's fields} ...}
local found = {}
for at = 5, #ARGV do
  local key = root .. 'i:' .. ARGV[2] .. ':' .. ARGV[at]
  for _, id in ipairs(redis.call('ZREVRANGEBYLEX', key, ARGV[3], '-', 'LIMIT', 0, ARGV[4])) do found[#found + 1] = id end
end
table.sort(found, function(one, other) return one > other end)
local answer = {}
for at = 1, math.min(#found, tonumber(ARGV[4])) do answer[at] = {found[at], redis.call('HGETALL', root .. 'b:' .. found[at])} end
return answer
