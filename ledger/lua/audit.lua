#!lua flags=allow-oom
-- Hold records and indexes against each other, a few at a time; each is judged at one moment, so that nothing that goes on meanwhile is
-- taken for a fault. The record is the truth. ARGV: root, '1' to mend or '', kind, item ...
--   record: build ids          member: a key (without its prefix), then members of it
--   lane: `project|class|key`  turn: `project|class`
-- Answers: {{key, member, what is wrong} ...}
local mend, kind = ARGV[2] == '1', ARGV[3]
local faults = {}
local STATES = {'queued', 'starting', 'running', 'publishing', 'succeeded', 'failed', 'cancelled', 'superseded'}
local FINAL = {succeeded = true, failed = true, cancelled = true, superseded = true}

local function fault(key, member, what) faults[#faults + 1] = {key, member, what} end

-- A member that must be in a sorted set with this score, or must not be there (score nil).
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

local function read(id)
  local project, state, attempt, platforms, class, lane, score, newer =
    unpack(redis.call('HMGET', root .. 'b:' .. id, 'project', 'state', 'attempt', 'platforms', 'class', 'lane', 'score', 'superseded_by'))
  return project and {project = project, state = state, attempt = attempt, platforms = platforms, class = class, lane = lane, score = score, newer = newer}
end

local function slot_keys(record)
  local keys = {'slots:', 'slots:' .. record.project, 'slots|class|' .. record.class}
  if record.lane ~= '' then keys[4] = 'slots|key|' .. record.project .. '|' .. record.lane end
  return keys
end

local function check_record(id)
  local record = read(id)
  if not record then return end
  local now = now_ms()
  for _, state in ipairs(STATES) do
    local score = state == record.state and 0 or nil
    expect('i:' .. record.project .. ':' .. state, id, score)
    expect('i::' .. state, id, score)
  end
  expect('due', id, not FINAL[record.state] and now or nil)
  expect('finished', id, FINAL[record.state] and now or nil)
  local lane = record.project .. '|' .. record.class .. '|' .. record.lane
  local delayed = redis.call('ZSCORE', root .. 'delayed', id)
  if record.state ~= 'queued' or record.newer then
    expect('delayed', id, nil)
    expect('q:' .. record.project, id, nil)
    expect('lane:' .. lane, id, nil)
  elseif delayed then
    expect('q:' .. record.project, id, nil)
    expect('lane:' .. lane, id, nil)
  else
    expect('q:' .. record.project, id, record.score)
    expect('lane:' .. lane, id, record.score)
  end
  local holds = record.state == 'starting' or record.state == 'running'
  for _, key in ipairs(slot_keys(record)) do
    for _, member in ipairs(members(id, record.attempt, record.platforms)) do expect(key, member, holds and now or nil) end
  end
end

-- Whether a record says that it is in this index.
local function belongs(key, member, record)
  if not record then return false end
  local holds = record.state == 'starting' or record.state == 'running'
  if string.sub(key, 1, 5) == 'slots' then
    local ours = false
    for _, slots in ipairs(slot_keys(record)) do ours = ours or slots == key end
    for _, slot in ipairs(members(string.match(member, '^[^/]+'), record.attempt, record.platforms)) do
      if slot == member then return ours and holds end
    end
    return false
  end
  if string.sub(key, 1, 2) == 'q:' then return key == 'q:' .. record.project and record.state == 'queued' end
  if string.sub(key, 1, 5) == 'lane:' then
    return key == 'lane:' .. record.project .. '|' .. record.class .. '|' .. record.lane and record.state == 'queued'
  end
  if string.sub(key, 1, 2) == 'i:' then return key == 'i::' .. record.state or key == 'i:' .. record.project .. ':' .. record.state end
  return true  -- due, delayed, finished: judged from the record
end

if kind == 'record' then
  for at = 4, #ARGV do check_record(ARGV[at]) end
elseif kind == 'member' then
  local key = ARGV[4]
  for at = 5, #ARGV do
    local member = ARGV[at]
    if not belongs(key, member, read(string.match(member, '^[^/]+'))) and redis.call('ZSCORE', root .. key, member) then
      fault(key, member, 'does not belong there')
      if mend then redis.call('ZREM', root .. key, member) end
    end
  end
elseif kind == 'lane' then
  for at = 4, #ARGV do
    local project, class, key = string.match(ARGV[at], '^([^|]*)|([^|]*)|(.*)$')
    local open = 'open:' .. project .. '|' .. class
    local before = redis.call('ZSCORE', root .. open, key)
    local head = redis.call('ZRANGE', root .. 'lane:' .. ARGV[at], 0, 0, 'WITHSCORES')[2]
    local room = key == '' or redis.call('ZCARD', root .. 'slots|key|' .. project .. '|' .. key) < limit_of('key|' .. project)
    local wanted = room and head
    if (before and tonumber(before)) ~= (wanted and tonumber(wanted) or nil) then
      fault(open, key, wanted and 'is not where the lane\'s first build puts it' or 'does not belong there')
      if mend then
        redis.call('SADD', root .. 'classes', class)
        redis.call('SADD', root .. 'classes:' .. project, class)
        refresh_lane(project, class, key)
      end
    end
    if key ~= '' and redis.call('EXISTS', root .. 'slots|key|' .. project .. '|' .. key) ~= redis.call('SISMEMBER', root .. 'keys:' .. project, key) then
      fault('keys:' .. project, key, 'does not say whether the key holds slots')
      if mend then
        local held = redis.call('EXISTS', root .. 'slots|key|' .. project .. '|' .. key) == 1
        redis.call(held and 'SADD' or 'SREM', root .. 'keys:' .. project, key)
      end
    end
  end
elseif kind == 'turn' then
  for at = 4, #ARGV do
    local project, class = string.match(ARGV[at], '^([^|]*)|(.*)$')
    local before = redis.call('ZSCORE', root .. 'turns:' .. class, project)
    local limit = limit_of(project)
    local wanted = redis.call('EXISTS', root .. 'open:' .. project .. '|' .. class) == 1 and redis.call('HEXISTS', root .. 'paused', project) == 0
      and (not limit or redis.call('ZCARD', root .. 'slots:' .. project) < limit)
    if wanted ~= (before and true or false) then
      fault('turns:' .. class, project, wanted and 'is missing' or 'does not belong there')
      if mend then refresh_turn(project, class) end
    end
  end
end
return faults
