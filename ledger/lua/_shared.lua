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

-- Whether a project takes part in the next admission: it has a build to admit and is below its limit.
-- One that comes back starts at the clock, so that it can neither save up turns nor owe any.
local function refresh_turn(project)
  local limit = tonumber(redis.call('HGET', root .. 'limits', project) or false)
  local waiting = redis.call('EXISTS', root .. 'q:' .. project) == 1
  if waiting and (not limit or redis.call('ZCARD', root .. 'slots:' .. project) < limit) then
    if not redis.call('ZSCORE', root .. 'turns', project) then
      local clock = tonumber(redis.call('HGET', root .. 'clock', '') or '0')
      local own = tonumber(redis.call('HGET', root .. 'clock', project) or '0')
      redis.call('ZADD', root .. 'turns', math.max(clock, own), project)
    end
  else
    redis.call('ZREM', root .. 'turns', project)
  end
end

-- Higher priority first, then the order of submission. Exact: 101 * 2^43 < 2^53.
local function enqueue(id, project, priority, sequence)
  redis.call('ZADD', root .. 'q:' .. project, -tonumber(priority) * 8796093022208 + tonumber(sequence), id)
  -- One that takes part already has a build to admit and room for it.
  if not redis.call('ZSCORE', root .. 'turns', project) then refresh_turn(project) end
end

local function dequeue(id, project)
  redis.call('ZREM', root .. 'delayed', id)
  if redis.call('ZREM', root .. 'q:' .. project, id) == 1 then refresh_turn(project) end
end

local function members(id, attempt, platforms)
  local found = {}
  for platform in string.gmatch(platforms, '[^,]+') do found[#found + 1] = id .. '/' .. attempt .. '/' .. platform end
  return found
end

local function publish_event(event, length)
  redis.call('XADD', root .. 'events', 'MAXLEN', '~', length, '*', 'event', event)
end
