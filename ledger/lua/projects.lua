#!lua flags=allow-oom
-- Store the projects file: policies and limits take effect at the next submit and admission. Projects that are no longer in it go;
-- their builds stay. ARGV: root, what is no project's (JSON), global limit, number of classes, per class: name, limit; then per project:
--       name, stored JSON, version, limit or '', limit of each concurrency key, weight
local names, kept = {}, {}
redis.call('SET', root .. 'site', ARGV[2])
redis.call('HSET', root .. 'limits', '', ARGV[3])
set_gate('')
local after = 5 + 2 * ARGV[4]
for at = 5, after - 1, 2 do
  kept['class|' .. ARGV[at]] = true
  redis.call('HSET', root .. 'limits', 'class|' .. ARGV[at], ARGV[at + 1])
  set_gate('class|' .. ARGV[at])
end
for _, field in ipairs(redis.call('HKEYS', root .. 'limits')) do
  if string.sub(field, 1, 6) == 'class|' and not kept[field] then
    redis.call('HDEL', root .. 'limits', field)
    set_gate(field)
  end
end
for at = after, #ARGV, 6 do
  local name, stored, version, limit, each, weight = unpack(ARGV, at, at + 5)
  names[name] = true
  redis.call('HSET', root .. 'projects', name, stored)
  redis.call('HSET', root .. 'projects:versions', name, version)
  if limit == '' then redis.call('HDEL', root .. 'limits', name) else redis.call('HSET', root .. 'limits', name, limit) end
  redis.call('HSET', root .. 'limits', 'key|' .. name, each)
  set_gate(name)
  set_gate('key|' .. name)
  redis.call('HSET', root .. 'shares', 'weight|' .. name, weight)
  for _, key in ipairs(redis.call('SMEMBERS', root .. 'keys:' .. name)) do refresh_key(name, key) end
  refresh_project(name)
end
for _, name in ipairs(redis.call('HKEYS', root .. 'projects')) do
  if not names[name] then
    redis.call('HDEL', root .. 'projects', name)
    redis.call('HDEL', root .. 'projects:versions', name)
  end
end
return #names
