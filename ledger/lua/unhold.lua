#!lua flags=allow-oom
-- End one's own holds of registries. ARGV: root, who holds, event stream length, event, host ... Answers how many ended.
local now, ended = now_ms(), 0
for at = 5, #ARGV do
  local by = string.match(redis.call('HGET', root .. 'holds', ARGV[at]) or '', '^%d+ %d+ (.*)$')
  if by == ARGV[2] then
    end_hold(ARGV[at], now)
    ended = ended + 1
  end
end
if ended > 0 then publish_event(ARGV[4], ARGV[3]) end
return ended
