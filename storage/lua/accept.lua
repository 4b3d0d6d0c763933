-- Take a query in: join the job that already answers it, or become a job of its own.
-- KEYS: job, callers, flight, queued, due, usage stream
-- ARGV: now or '', job id, '1' to coalesce, most jobs queued, most usage entries, flight ttl (ms),
--       republish after (ms), deadline (ms from now), keep for (ms), order offset, caller (JSON), then pairs of job fields
-- Returns {'leader', job id} | {'follower', leader's id} | {'hit', answer} | {'full', depth} | {'backlog', length}
local job, callers, flight, queued, due, usage = unpack(KEYS)
local now, id = clock(ARGV[1]), ARGV[2]
local coalesce, caller = ARGV[3] == '1', ARGV[11]
local keep = tonumber(ARGV[8]) + tonumber(ARGV[9])

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

local leader = coalesce and redis.call('GET', flight)
if leader then
  local found = redis.call('HMGET', key('job', leader), 'status', 'answer')
  local status, answer = found[1], found[2]
  if status == 'completed' and answer then
    local meta = string.sub(answer, 1, string.find(answer, '\n', 1, true) - 1)
    redis.call('XADD', usage, '*', 'kind', 'hit', 'at', whole(now), 'caller', caller, 'answer', meta)
    return {'hit', answer}
  end
  if status == 'queued' or status == 'running' then
    redis.call('HSET', job, 'alias', leader)
    redis.call('PEXPIRE', job, keep)
    remember_caller(leader)
    announce(leader)
    return {'follower', leader}
  end
end

local depth = redis.call('ZCARD', queued)
if depth >= tonumber(ARGV[4]) then return {'full', whole(depth)} end
local backlog = redis.call('XLEN', usage)
if backlog >= tonumber(ARGV[5]) then return {'backlog', whole(backlog)} end

local deadline, rank = now + tonumber(ARGV[8]), whole(now + tonumber(ARGV[10]))
redis.call('HSET', job, 'status', 'queued', 'created_at', whole(now), 'deadline_at', whole(deadline),
  'rank', rank, 'runs', '0')
redis.call('HSET', job, unpack(ARGV, 12))
remember_caller(id)
redis.call('PEXPIRE', job, keep)
redis.call('PEXPIRE', callers, keep)
redis.call('ZADD', queued, rank, id)
redis.call('ZADD', due, math.min(now + tonumber(ARGV[7]), deadline), id)
if coalesce then redis.call('SET', flight, id, 'PX', ARGV[6]) end
announce(id)
return {'leader', id}
