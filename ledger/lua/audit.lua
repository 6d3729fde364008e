#!lua flags=allow-oom
-- Hold records and indexes against each other, a few at a time; each is judged at one moment, so that nothing that goes on meanwhile is
-- taken for a fault. The record is the truth. ARGV: root, '1' to mend or '', kind, item ...
--   record: build ids          member: a key (without its prefix), then members of it
--   lane: `project|class|lane` turn: `project|class`      key: names of idempotency keys (without the prefix)
--   gate: fields of limits and pauses    hold: registries     note: a key (without its prefix) of noted lanes, then members of it
-- Answers: {{key, member, what is wrong} ...}
local mend, kind = ARGV[2] == '1', ARGV[3]
local faults, seen = {}, {}
local STATES = {'queued', 'starting', 'running', 'publishing', 'succeeded', 'failed', 'cancelled', 'superseded'}
local FINAL = {succeeded = true, failed = true, cancelled = true, superseded = true}
local HOLDS = {starting = true, running = true}

local function fault(key, member, what) faults[#faults + 1] = {key, member, what} end

-- A member that must be in a sorted set, with this score where it is put there, or must not be there (score nil).
local function expect(key, member, score)
  local found = redis.call('ZSCORE', root .. key, member)
  if score and not found then
    fault(key, member, 'is missing')
    if mend then redis.call('ZADD', root .. key, score, member) end
  elseif found and not score then
    fault(key, member, 'does not belong there')
    if mend then redis.call('ZREM', root .. key, member) end
  end
end

local function check_turn(project, class)
  local before = redis.call('ZSCORE', root .. 'turns:' .. class, project)
  local wanted = has_turn(project, class)
  if wanted ~= (before and true or false) then
    fault('turns:' .. class, project, wanted and 'is missing' or 'does not belong there')
    if mend then refresh_turn(project, class) end
  end
end

local function check_lane(project, class, lane)
  local name = project .. '|' .. class .. '|' .. lane
  if seen[name] then return end
  seen[name] = true
  local key = key_of(lane)
  local head = redis.call('ZRANGE', root .. 'lane:' .. name, 0, 0, 'WITHSCORES')[2]
  if head then
    for at, counted in ipairs({'classes:' .. project, 'classes'}) do
      if redis.call('HEXISTS', root .. counted, class) == 0 then
        fault(counted, class, 'is missing')
        if mend then redis.call('HSET', root .. counted, class, 1) end
      end
    end
  end
  for _, note in ipairs(notes_of(project, lane)) do
    if redis.call('SISMEMBER', root .. note, name) ~= (head and 1 or 0) then
      fault(note, name, head and 'is missing' or 'does not belong there')
      if mend then redis.call(head and 'SADD' or 'SREM', root .. note, name) end
    end
  end
  if key ~= '' then
    local held = redis.call('EXISTS', root .. 'slots|key|' .. project .. '|' .. key)
    if held ~= redis.call('SISMEMBER', root .. 'keys:' .. project, key) then
      fault('keys:' .. project, key, held == 1 and 'is missing' or 'does not belong there')
      if mend then redis.call(held == 1 and 'SADD' or 'SREM', root .. 'keys:' .. project, key) end
    end
  end
  local open = 'open:' .. project .. '|' .. class
  local before = tonumber(redis.call('ZSCORE', root .. open, lane) or nil)
  local wanted = head and has_room(project, key) and #holds_of(lane) == 0 and tonumber(head) or nil
  if before ~= wanted then
    fault(open, lane, not before and 'is missing' or wanted and 'is not where the first of its lane puts it' or 'does not belong there')
    if mend then refresh_lane(project, class, lane) end
  end
  check_turn(project, class)
end

local function read(id)
  local project, state, attempt, platforms, class, lane, score, newer, key =
    unpack(redis.call('HMGET', root .. 'b:' .. id, 'project', 'state', 'attempt', 'platforms', 'class', 'lane', 'score', 'superseded_by', 'key'))
  return project and {project = project, state = state, attempt = attempt or '0', platforms = platforms, class = class, lane = lane or '|', score = score, newer = newer, key = key}
end

local function check_record(id)
  local record = read(id)
  if not record then return end
  local now, project, state, before = now_ms(), record.project, record.state, #faults
  for _, other in ipairs(STATES) do
    expect('i:' .. project .. ':' .. other, id, other == state and 0 or nil)
    expect('i::' .. other, id, other == state and 0 or nil)
  end
  expect('due', id, not FINAL[state] and now or nil)
  expect('finished', id, FINAL[state] and now or nil)
  local lane = 'lane:' .. project .. '|' .. record.class .. '|' .. record.lane
  local waits = state == 'queued' and not record.newer
  if not waits then expect('delayed', id, nil) end
  local ready = waits and not redis.call('ZSCORE', root .. 'delayed', id)
  expect('q:' .. project, id, ready and record.score or nil)
  expect(lane, id, ready and record.score or nil)
  for _, scope in ipairs(scopes(project, record.class, record.lane)) do
    for _, member in ipairs(members(id, record.attempt, record.platforms)) do expect(scope[1], member, HOLDS[state] and now or nil) end
  end
  if #faults > before then seen = {} end  -- what was judged before may be otherwise now
  check_lane(project, record.class, record.lane)
end

-- Whether a record says that it is in this index.
local function belongs(key, member, record)
  if not record then return false end
  if string.sub(key, 1, 5) == 'slots' then
    if not HOLDS[record.state] then return false end
    local ours = false
    for _, scope in ipairs(scopes(record.project, record.class, record.lane)) do ours = ours or scope[1] == key end
    for _, slot in ipairs(members(string.match(member, '^[^/]+'), record.attempt, record.platforms)) do
      if slot == member then return ours end
    end
    return false
  end
  if string.sub(key, 1, 2) == 'q:' then return key == 'q:' .. record.project and record.state == 'queued' end
  if string.sub(key, 1, 5) == 'lane:' then
    return key == 'lane:' .. record.project .. '|' .. record.class .. '|' .. record.lane and record.state == 'queued'
  end
  if string.sub(key, 1, 2) == 'i:' then return key == 'i::' .. record.state or key == 'i:' .. record.project .. ':' .. record.state end
  return true  -- due, delayed, finished: judged from the record; logs, tags: of a build that is known
end

if kind == 'record' then
  for at = 4, #ARGV do check_record(ARGV[at]) end
elseif kind == 'member' then
  local key = ARGV[4]
  for at = 5, #ARGV do
    local member = ARGV[at]
    local record = read(string.match(member, '^[^/:]+'))
    if not belongs(key, member, record) and redis.call('ZSCORE', root .. key, member) then
      fault(key, member, 'does not belong there')
      if mend then
        redis.call('ZREM', root .. key, member)
        if record then check_lane(record.project, record.class, record.lane) end
      end
    end
  end
elseif kind == 'lane' then
  for at = 4, #ARGV do check_lane(string.match(ARGV[at], '^([^|]*)|([^|]*)|(.*)$')) end
elseif kind == 'turn' then
  for at = 4, #ARGV do check_turn(string.match(ARGV[at], '^([^|]*)|(.*)$')) end
elseif kind == 'gate' then
  for at = 4, #ARGV do
    local field = ARGV[at]
    local limit = redis.call('HGET', root .. 'limits:set', field) or redis.call('HGET', root .. 'limits', field)
    if limit ~= redis.call('HGET', root .. 'gates', field) then
      fault('gates', field, 'is not the limit that holds')
      if mend then set_gate(field) end
    end
    local paused = redis.call('HGET', root .. 'paused', field)
    if paused ~= redis.call('HGET', root .. 'gates', 'p|' .. field) then
      fault('gates', 'p|' .. field, 'does not say whether it is paused')
      if mend and paused then redis.call('HSET', root .. 'gates', 'p|' .. field, paused) end
      if mend and not paused then redis.call('HDEL', root .. 'gates', 'p|' .. field) end
    end
  end
elseif kind == 'hold' then
  for at = 4, #ARGV do
    local host = ARGV[at]
    local hold = redis.call('HGET', root .. 'holds', host)
    local till, gate = redis.call('ZSCORE', root .. 'holds:until', host), redis.call('HGET', root .. 'gates', 'h|' .. host)
    local expected = hold and string.match(hold, '^%d+ (%d+)')
    if (till and tonumber(till)) ~= (expected and tonumber(expected)) then
      fault('holds:until', host, hold and 'does not say when it ends' or 'does not belong there')
      if mend and hold then redis.call('ZADD', root .. 'holds:until', expected, host) end
      if mend and not hold then redis.call('ZREM', root .. 'holds:until', host) end
    end
    if gate ~= hold then
      fault('gates', 'h|' .. host, 'does not say whether it is held')
      if mend then
        if hold then redis.call('HSET', root .. 'gates', 'h|' .. host, hold) else redis.call('HDEL', root .. 'gates', 'h|' .. host) end
        refresh_noted('lanes:' .. host)
      end
    end
  end
elseif kind == 'note' then
  local note = ARGV[4]
  for at = 5, #ARGV do
    local project, class, lane = string.match(ARGV[at], '^([^|]*)|([^|]*)|(.*)$')
    local ours = false
    for _, other in ipairs(lane and notes_of(project, lane) or {}) do ours = ours or other == note end
    if ours then
      check_lane(project, class, lane)
    else
      fault(note, ARGV[at], 'does not belong there')
      if mend then redis.call('SREM', root .. note, ARGV[at]) end
    end
  end
elseif kind == 'key' then
  for at = 4, #ARGV do
    local id = redis.call('GET', root .. ARGV[at])
    local record = id and read(id)
    if id and not (record and record.key and ARGV[at] == 'idem:' .. record.project .. ':' .. record.key) then
      fault(ARGV[at], id, 'is of no such build')
      if mend then redis.call('DEL', root .. ARGV[at]) end
    end
  end
end
return faults
