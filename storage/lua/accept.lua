-- Take a query in: join the job that already answers it, or become a job of its own.
-- KEYS: job, callers, flight, queued, due, usage stream, counter of unrecorded hits
-- ARGV: now or '', job id, '1' to coalesce, most jobs queued, most usage entries, flight ttl (ms),
--       republish after (ms), deadline (ms from now), keep for (ms), order offset, caller (JSON), payload, priority,
--       then pairs of job fields
-- Returns {'leader', job id} | {'follower', leader's id} | {'hit', answer} | {'full', depth} | {'backlog', length}
local job, callers, flight, queued, due, usage, unrecorded = unpack(KEYS)
local now, id = clock(ARGV[1]), ARGV[2]
local coalesce, caller, payload, priority = ARGV[3] == '1', ARGV[11], ARGV[12], ARGV[13]
local time_left, keep = tonumber(ARGV[8]), tonumber(ARGV[9])

-- The same call again: its first reply was lost on the way.
if redis.call('EXISTS', job) == 1 then
  local leader = redis.call('HGET', job, 'alias')
  if leader then return {'follower', leader} end
  return {'leader', id}
end

local function announce(leader)
  redis.call('XADD', usage, '*', 'kind', 'accepted', 'at', whole(now), 'job', leader, 'caller', caller)
end

local function remember_caller(leader)
  redis.call('HSET', key('callers', leader), id, '{"at":' .. whole(now) .. ',"caller":' .. caller .. '}')
end

-- Joining must not cost the caller its answer: the leader needs about as much time as the caller would have, and an
-- interactive query does not wait in the batch queue.
local function serves(status, leaders_deadline, leaders_priority)
  if status ~= 'queued' and status ~= 'running' then return false end
  local is_prompt = status == 'running' or tonumber(leaders_priority) <= tonumber(priority)
  return is_prompt and (leaders_deadline - now) * 2 >= time_left
end

local leader = coalesce and redis.call('GET', flight)
if leader then
  local found = redis.call('HMGET', key('job', leader), 'status', 'answer', 'deadline_at', 'priority')
  local status, answer, leaders_deadline, leaders_priority = unpack(found)
  if status == 'completed' and answer then
    record_hit(usage, unrecorded, ARGV[5], caller, answer)
    return {'hit', answer}
  end
  if serves(status, leaders_deadline, leaders_priority) then
    redis.call('HSET', job, 'alias', leader, 'created_at', whole(now), 'payload', payload)
    redis.call('PEXPIRE', job, leaders_deadline - now + keep)
    remember_caller(leader)
    announce(leader)
    return {'follower', leader}
  end
end

local depth = redis.call('ZCARD', queued)
if depth >= tonumber(ARGV[4]) then return {'full', whole(depth)} end
local backlog = redis.call('XLEN', usage)
if backlog >= tonumber(ARGV[5]) then return {'backlog', whole(backlog)} end

-- An open job never expires by itself: it would leave the queue's count behind. finish.lua says for how long it is kept.
local deadline, rank = now + time_left, whole(now + tonumber(ARGV[10]))
redis.call('HSET', job, 'status', 'queued', 'created_at', whole(now), 'deadline_at', whole(deadline),
  'rank', rank, 'runs', '0', 'payload', payload, 'priority', priority, unpack(ARGV, 14))
remember_caller(id)
redis.call('ZADD', queued, rank, id)
redis.call('ZADD', due, math.min(now + tonumber(ARGV[7]), deadline), id)
if coalesce then redis.call('SET', flight, id, 'PX', ARGV[6]) end
announce(id)
return {'leader', id}
