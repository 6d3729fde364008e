#!lua
-- Store the projects file: policies and limits take effect at the next submit and admission. Projects that are no longer in it go;
-- their builds stay. ARGV: root, global limit, then per project: name, stored JSON, version, limit or '', weight
local names = {}
redis.call('HSET', root .. 'limits', '', ARGV[2])
for at = 3, #ARGV, 5 do
  local name, stored, version, limit, weight = unpack(ARGV, at, at + 4)
  names[name] = true
  redis.call('HSET', root .. 'projects', name, stored)
  redis.call('HSET', root .. 'projects:versions', name, version)
  if limit == '' then redis.call('HDEL', root .. 'limits', name) else redis.call('HSET', root .. 'limits', name, limit) end
  redis.call('HSET', root .. 'weights', name, weight)
  refresh_turn(name)
end
for _, name in ipairs(redis.call('HKEYS', root .. 'projects')) do
  if not names[name] then
    redis.call('HDEL', root .. 'projects', name)
    redis.call('HDEL', root .. 'projects:versions', name)
  end
end
return #names
