#!lua flags=no-writes
-- The builds that hold slots and write to one of these registries. ARGV: root, host ... Answers their ids.
local asked, found, seen = {}, {}, {}
for at = 2, #ARGV do asked[ARGV[at]] = true end
for _, slot in ipairs(redis.call('ZRANGE', root .. 'slots:', 0, -1)) do
  local id = string.match(slot, '^[^/]+')
  if not seen[id] then
    seen[id] = true
    for host in registries_of(redis.call('HGET', root .. 'b:' .. id, 'lane') or '|') do
      if asked[host] then
        found[#found + 1] = id
        break
      end
    end
  end
end
return found
