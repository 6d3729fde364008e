-- Functions that several scripts share; put before each of them when it is loaded.
-- ARGV[1] is always the keys' prefix (ledger/keys.py names what is behind each key).
local root = ARGV[1]

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function index(call, id, project, state)
  redis.call(call, root .. 'i:' .. project .. ':' .. state, unpack(call == 'ZADD' and {0, id} or {id}))
  redis.call(call, root .. 'i::' .. state, unpack(call == 'ZADD' and {0, id} or {id}))
end

-- `gates` is what admissions look at: each limit as it holds now, under 'p|' what is paused, and under 'h|' which registry is held.
-- Nil: no limit, no pause, no hold.
-- Fields: '' (all), a project, 'class|' and a capacity class, 'key|' and a project (each of its concurrency keys).
local function limit_of(field)
  return tonumber(redis.call('HGET', root .. 'gates', field) or (field == '' and 20) or (string.sub(field, 1, 4) == 'key|' and 1) or nil)
end

-- What was set by hand goes before the projects file.
local function set_gate(field)
  local limit = redis.call('HGET', root .. 'limits:set', field) or redis.call('HGET', root .. 'limits', field)
  if limit then redis.call('HSET', root .. 'gates', field, limit) else redis.call('HDEL', root .. 'gates', field) end
end

-- Whether a project may take part in admissions: it is below its limit and not paused. (It also needs a build that may be admitted.)
local function may_go(project)
  local limit, paused = unpack(redis.call('HMGET', root .. 'gates', project, 'p|' .. project))
  return not paused and (not limit or redis.call('ZCARD', root .. 'slots:' .. project) < tonumber(limit))
end

local function has_turn(project, class)
  return redis.call('EXISTS', root .. 'open:' .. project .. '|' .. class) == 1 and may_go(project)
end

-- A project's virtual time is the time that it has held slots, divided by its weight: the project with the least goes next. One that
-- had nothing to admit in a class comes back at the clock, the virtual time of the last admission, so that it can neither save up turns
-- nor owe any.
local function take_turn(project, class)
  local turns = root .. 'turns:' .. class
  local own, clock = unpack(redis.call('HMGET', root .. 'shares', project, ''))
  own, clock = tonumber(own or '0'), tonumber(clock or '0')
  if clock > own and not redis.call('ZSCORE', turns, project) then
    redis.call('HSET', root .. 'shares', project, clock)
    own = clock
  end
  redis.call('ZADD', turns, own, project)
end

local function refresh_turn(project, class)
  if has_turn(project, class) then take_turn(project, class) else redis.call('ZREM', root .. 'turns:' .. class, project) end
end

local function refresh_project(project)
  local going = may_go(project)
  for _, class in ipairs(redis.call('HKEYS', root .. 'classes:' .. project)) do
    if going and redis.call('EXISTS', root .. 'open:' .. project .. '|' .. class) == 1 then
      take_turn(project, class)
    else
      redis.call('ZREM', root .. 'turns:' .. class, project)
    end
  end
end

local function has_room(project, key)
  return key == '' or redis.call('ZCARD', root .. 'slots|key|' .. project .. '|' .. key) < limit_of('key|' .. project)
end

-- A lane is named by the registries that its builds write to, in order and with commas between, a '|', and their concurrency key.
-- Limits are counted by the key alone.
local function registries_of(lane) return string.gmatch(string.match(lane, '^[^|]*'), '[^,]+') end
local function key_of(lane) return string.match(lane, '^[^|]*|(.*)$') or '' end

-- Those of the registries that are held: {host, 'since until by', ...}, by ledger/holds.py.
local function holds_of(lane)
  local hosts, fields = {}, {}
  for host in registries_of(lane) do
    hosts[#hosts + 1], fields[#fields + 1] = host, 'h|' .. host
  end
  if #fields == 0 then return {} end
  local found = {}
  for at, hold in ipairs(redis.call('HMGET', root .. 'gates', unpack(fields))) do
    if hold then found[#found + 1], found[#found + 2] = hosts[at], hold end
  end
  return found
end

-- A lane holds what waits of one project, class, set of registries and concurrency key. It is open while it has a build, its key has room
-- and none of its registries is held: so what is blocked is not among that which an admission looks at, however much it is.
local function refresh_lane(project, class, lane)
  local open = root .. 'open:' .. project .. '|' .. class
  local head = redis.call('ZRANGE', root .. 'lane:' .. project .. '|' .. class .. '|' .. lane, 0, 0, 'WITHSCORES')
  if head[1] and has_room(project, key_of(lane)) and #holds_of(lane) == 0 then
    redis.call('ZADD', open, head[2], lane)
  else
    redis.call('ZREM', open, lane)
  end
  refresh_turn(project, class)
end

-- Where a lane that is not empty is noted: by each of its registries, whose holds close it, and by its key, whose slots do.
local function notes_of(project, lane)
  local key = key_of(lane)
  local found = key ~= '' and {'lanes|key|' .. project .. '|' .. key} or {}
  for host in registries_of(lane) do found[#found + 1] = 'lanes:' .. host end
  return found
end

local function refresh_noted(note)
  for _, member in ipairs(redis.call('SMEMBERS', root .. note)) do refresh_lane(string.match(member, '^([^|]*)|([^|]*)|(.*)$')) end
end

-- The lanes of one key, in every class: its slots or its limit have changed.
local function refresh_key(project, key) refresh_noted('lanes|key|' .. project .. '|' .. key) end

-- A lane has got its first build (1) or lost its last (-1). How many lanes a project has in a class, and how many projects a class has, is
-- counted: what nobody waits for is not looked at.
local function count_lane(project, class, lane, by)
  for _, note in ipairs(notes_of(project, lane)) do
    redis.call(by == 1 and 'SADD' or 'SREM', root .. note, project .. '|' .. class .. '|' .. lane)
  end
  local lanes = redis.call('HINCRBY', root .. 'classes:' .. project, class, by)
  if lanes <= 0 then redis.call('HDEL', root .. 'classes:' .. project, class) end
  if (by == 1 and lanes == 1) or (by == -1 and lanes == 0) then
    if redis.call('HINCRBY', root .. 'classes', class, by) <= 0 then redis.call('HDEL', root .. 'classes', class) end
  end
end

-- The least score goes first: when it was taken in (ms), where a point of priority is worth a minute of waiting. So whoever waits long
-- enough goes before every newcomer of a higher priority, and nothing is scored again.
local function enqueue(id, project, class, lane, score)
  redis.call('ZADD', root .. 'q:' .. project, score, id)
  local waits = root .. 'lane:' .. project .. '|' .. class .. '|' .. lane
  if redis.call('ZADD', waits, score, id) == 1 and redis.call('ZCARD', waits) == 1 then
    count_lane(project, class, lane, 1)
  elseif redis.call('ZRANGE', waits, 0, 0)[1] ~= id then
    return  -- another goes first, so the lane is as it was
  end
  refresh_lane(project, class, lane)
end

local function dequeue(id, project, class, lane)
  redis.call('ZREM', root .. 'delayed', id)
  redis.call('ZREM', root .. 'q:' .. project, id)
  local waits = root .. 'lane:' .. project .. '|' .. class .. '|' .. lane
  if redis.call('ZREM', waits, id) == 1 then
    refresh_lane(project, class, lane)
    if redis.call('EXISTS', waits) == 0 then count_lane(project, class, lane, -1) end
  end
end

-- The sets in which a build holds slots, and the fields of their limits.
local function scopes(project, class, lane)
  local key = key_of(lane)
  local found = {{'slots:', ''}, {'slots:' .. project, project}, {'slots|class|' .. class, 'class|' .. class}}
  if key ~= '' then found[4] = {'slots|key|' .. project .. '|' .. key, 'key|' .. project} end
  return found
end

local function members(id, attempt, platforms)
  local found = {}
  for platform in string.gmatch(platforms, '[^,]+') do found[#found + 1] = id .. '/' .. attempt .. '/' .. platform end
  return found
end

-- End the hold of a registry. Time that a build waited for it is not counted against its deadline.
local function end_hold(host, now)
  local since = string.match(redis.call('HGET', root .. 'holds', host) or '', '^%d+')
  redis.call('HDEL', root .. 'holds', host)
  redis.call('HDEL', root .. 'gates', 'h|' .. host)
  redis.call('ZREM', root .. 'holds:until', host)
  if since then
    redis.call('RPUSH', root .. 'pauses:h|' .. host, since .. ' ' .. now)
    redis.call('LTRIM', root .. 'pauses:h|' .. host, -100, -1)
  end
  refresh_noted('lanes:' .. host)
end

local function publish_event(event, length)
  redis.call('XADD', root .. 'events', 'MAXLEN', '~', length, '*', 'event', event)
end

-- What a tag of a repository is wanted to be, after somebody with this place in the order wants it to be a digest: the later one wins.
local function raise_wanted(repository, tag, sequence, digest, by)
  local key = root .. 'tags:' .. repository
  local wanted = redis.call('HGET', key, tag)
  if not wanted or tonumber(string.match(wanted, '^%d+')) <= tonumber(sequence) then
    wanted = sequence .. ' ' .. digest .. ' ' .. by
    redis.call('HSET', key, tag, wanted)
  end
  return wanted
end
