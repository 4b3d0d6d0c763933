-- Take a query in: join the job that already answers it, or become a job of its own.
-- KEYS: job, callers, flight, due, usage stream, counter of unrecorded hits, mark of its withdrawal
-- ARGV: now or '', job id, '1' to coalesce, limits (JSON: queue, tenant_queue, callers, usage), flight ttl (ms),
--       republish after (ms), deadline (ms from now), start by (ms from now) or '', keep for (ms), caller (JSON),
--       caller's tenant, quota (JSON) or '', payload, priority, tier, text for the record or ''
-- Returns {'leader', job id, 1 where it needs a message} | {'follower', leader's id} | {'hit', answer} |
--   {'withdrawn', job id}: it was taken back before it came | {refusal, number}; refusals:
--   'full' queued in the tier | 'tenant_full' queued by the tenant | 'crowded' callers of the job |
--   'backlog' entries in the usage stream | 'open_jobs', 'tokens_day', 'budget_day', 'budget_month': ms to wait
local job, callers, flight, due, usage, unrecorded, withdrawn = unpack(KEYS)
local now, id, limits = clock(ARGV[1]), ARGV[2], cjson.decode(ARGV[4])
local coalesce, caller, tenant, payload, priority, tier = ARGV[3] == '1', ARGV[10], ARGV[11], ARGV[13], ARGV[14], ARGV[15]
local time_left, starts_in, keep = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local quota = ARGV[12] ~= '' and cjson.decode(ARGV[12])

-- The same call again: its first reply was lost on the way.
if redis.call('EXISTS', job) == 1 then
  local leader = redis.call('HGET', job, 'alias')
  if leader then return {'follower', leader} end
  return {'leader', id, 1}
end
if redis.call('EXISTS', withdrawn) == 1 then return {'withdrawn', id} end

-- Whoever joins holds what it may come to pay, should those before it leave.
local function enter(leader, deadline)
  redis.call('HSET', key('callers', leader), id, '{"at":' .. whole(now) .. ',"caller":' .. caller .. '}')
  if quota then
    redis.call('HSET', job, 'quota', ARGV[12])
    hold(quota)
    sign_on(quota.key, id, deadline, now)
  end
  redis.call('XADD', usage, '*', 'kind', 'accepted', 'at', whole(now), 'job', leader, 'caller', caller, 'text', ARGV[16])
end

-- A limit of the job's fits a caller where it gives about as much time as the caller's own, and not more.
local function fits(theirs, mine)
  if not theirs or not mine then return not theirs and not mine end
  return theirs <= mine and (theirs - now) * 2 >= mine - now
end

-- Joining must neither cost the caller its answer nor keep it waiting past its own limits.
local function serves(status, deadline, its_priority, start_by)
  if not (status == 'queued' or status == 'running') or not fits(tonumber(deadline), now + time_left) then return false end
  if status == 'running' then return true end
  local is_prompt = tonumber(its_priority) <= tonumber(priority)  -- an interactive query does not wait in the batch line
  return is_prompt and fits(start_by and tonumber(start_by), starts_in and now + starts_in)
end

local backlog = redis.call('XLEN', usage)
if backlog >= limits.usage then return {'backlog', whole(backlog)} end

local leader = coalesce and redis.call('GET', flight)
if leader then
  local found = redis.call('HMGET', key('job', leader), 'status', 'answer', 'deadline_at', 'priority', 'start_by')
  local status, answer, leaders_deadline, leaders_priority, start_by = unpack(found)
  if status == 'completed' and answer then
    record_hit(usage, unrecorded, limits.usage, caller, answer)
    return {'hit', answer}
  end
  if serves(status, leaders_deadline, leaders_priority, start_by) then
    local crowd = redis.call('HLEN', key('callers', leader))
    if crowd >= limits.callers then return {'crowded', whole(crowd)} end
    local over = quota and refusal(quota, now)
    if over then return over end
    redis.call('HSET', job, 'alias', leader, 'created_at', whole(now), 'tenant', tenant, 'payload', payload)
    redis.call('PEXPIRE', job, leaders_deadline - now + keep)
    enter(leader, leaders_deadline)
    return {'follower', leader}
  end
end

local depth = queued_in(tier)
if depth >= limits.queue then return {'full', whole(depth)} end
local mine = waiting_of(tier, tenant)
if mine >= limits.tenant_queue then return {'tenant_full', whole(mine)} end
local over = quota and refusal(quota, now)
if over then return over end

-- An open job never expires by itself: it would leave the queue's count behind. ending.lua says for how long it is kept.
local deadline = now + time_left
local look_at = math.min(now + tonumber(ARGV[6]), deadline)
redis.call('HSET', job, 'status', 'queued', 'created_at', whole(now), 'deadline_at', whole(deadline), 'tenant', tenant,
  'tier', tier, 'priority', priority, 'runs', '0', 'payload', payload, 'text', ARGV[16])
if starts_in then
  redis.call('HSET', job, 'start_by', whole(now + starts_in))
  look_at = math.min(look_at, now + starts_in)
end
enter(id, deadline)
line_up(id, tier, priority, tenant)
redis.call('ZADD', due, look_at, id)
if coalesce then
  redis.call('HSET', job, 'flight', flight)
  redis.call('SET', flight, id, 'PX', ARGV[5])
end
-- Any message serves any job: where there are enough of them, one more would only pile up.
return {'leader', id, messages_in(tier) < queued_in(tier) and 1 or 0}
