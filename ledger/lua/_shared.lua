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

-- A limit as it holds now: what was set by hand goes before the projects file. Nil: none.
-- Fields: '' (all), a project, 'class|' and a capacity class, 'key|' and a project (each of its concurrency keys).
local function limit_of(field)
  return tonumber(redis.call('HGET', root .. 'limits:set', field) or redis.call('HGET', root .. 'limits', field)
    or (field == '' and 20) or (string.sub(field, 1, 4) == 'key|' and 1) or false)
end

-- Whether a project takes part in a class's next admissions: it has a build there to admit, is below its limit and not paused.
-- One that comes back starts at the clock, so that it can neither save up turns nor owe any.
local function refresh_turn(project, class)
  local turns = root .. 'turns:' .. class
  local limit = limit_of(project)
  if redis.call('EXISTS', root .. 'open:' .. project .. '|' .. class) == 1 and redis.call('HEXISTS', root .. 'paused', project) == 0
    and (not limit or redis.call('ZCARD', root .. 'slots:' .. project) < limit) then
    if not redis.call('ZSCORE', turns, project) then
      local clock = tonumber(redis.call('HGET', root .. 'clock', '') or '0')
      local own = tonumber(redis.call('HGET', root .. 'clock', project) or '0')
      redis.call('ZADD', turns, math.max(clock, own), project)
    end
  else
    redis.call('ZREM', turns, project)
  end
end

local function refresh_project(project)
  for _, class in ipairs(redis.call('SMEMBERS', root .. 'classes:' .. project)) do refresh_turn(project, class) end
end

-- A lane holds what waits of one project, class and concurrency key. It is open while it has a build and its key has room: so builds
-- behind a full key are not among those that an admission looks at, however many they are.
local function refresh_lane(project, class, key)
  local name = project .. '|' .. class .. '|' .. key
  local open = root .. 'open:' .. project .. '|' .. class
  local head = redis.call('ZRANGE', root .. 'lane:' .. name, 0, 0, 'WITHSCORES')
  if head[1] and (key == '' or redis.call('ZCARD', root .. 'slots|key|' .. project .. '|' .. key) < limit_of('key|' .. project)) then
    redis.call('ZADD', open, head[2], key)
  else
    redis.call('ZREM', open, key)
  end
  refresh_turn(project, class)
end

-- The lanes of one key, in every class: its slots or its limit have changed.
local function refresh_key(project, key)
  for _, class in ipairs(redis.call('SMEMBERS', root .. 'classes:' .. project)) do refresh_lane(project, class, key) end
end

-- The least score goes first: when it was taken in (ms), where a point of priority is worth a minute of waiting. So whoever waits long
-- enough goes before every newcomer of a higher priority, and nothing is scored again.
local function enqueue(id, project, class, key, score)
  redis.call('ZADD', root .. 'q:' .. project, score, id)
  local lane = root .. 'lane:' .. project .. '|' .. class .. '|' .. key
  redis.call('ZADD', lane, score, id)
  if redis.call('ZRANK', lane, id) > 0 then return end  -- another goes first, so the lane is as it was
  redis.call('SADD', root .. 'classes', class)
  redis.call('SADD', root .. 'classes:' .. project, class)
  refresh_lane(project, class, key)
end

local function dequeue(id, project, class, key)
  redis.call('ZREM', root .. 'delayed', id)
  if redis.call('ZREM', root .. 'q:' .. project, id) == 1 then
    redis.call('ZREM', root .. 'lane:' .. project .. '|' .. class .. '|' .. key, id)
    refresh_lane(project, class, key)
  end
end

-- Every scope in which a build holds slots: {its set, its limit}.
local function scopes(project, class, key)
  local found = {
    {root .. 'slots:', limit_of('')},
    {root .. 'slots:' .. project, limit_of(project)},
    {root .. 'slots|class|' .. class, limit_of('class|' .. class)},
  }
  if key ~= '' then found[4] = {root .. 'slots|key|' .. project .. '|' .. key, limit_of('key|' .. project)} end
  return found
end

local function members(id, attempt, platforms)
  local found = {}
  for platform in string.gmatch(platforms, '[^,]+') do found[#found + 1] = id .. '/' .. attempt .. '/' .. platform end
  return found
end

local function publish_event(event, length)
  redis.call('XADD', root .. 'events', 'MAXLEN', '~', length, '*', 'event', event)
end
