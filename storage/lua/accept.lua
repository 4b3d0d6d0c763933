-- Take a query in: join the job that already answers it, or become a job of its own.
-- KEYS: job, callers, flight, due, usage stream, counter of unrecorded hits
-- ARGV: now or '', job id, '1' to coalesce, limits (JSON: queue, tenant_queue, callers, usage), flight ttl (ms),
--       republish after (ms), deadline (ms from now), start by (ms from now) or '', keep for (ms), caller (JSON),
--       caller's tenant, quota (JSON) or '', payload, priority, tier
-- Returns {'leader', job id} | {'follower', leader's id} | {'hit', answer} | {refusal, number}; refusals:
--   'full' queued in the tier | 'tenant_full' queued by the tenant | 'crowded' callers of the job |
--   'backlog' entries in the usage stream | 'open_jobs', 'tokens_day', 'budget_day', 'budget_month': ms to wait
local job, callers, flight, due, usage, unrecorded = unpack(KEYS)
local now, id, limits = clock(ARGV[1]), ARGV[2], cjson.decode(ARGV[4])
local coalesce, caller, tenant, payload, priority, tier = ARGV[3] == '1', ARGV[10], ARGV[11], ARGV[13], ARGV[14], ARGV[15]
local time_left, keep = tonumber(ARGV[7]), tonumber(ARGV[9])
local quota = ARGV[12] ~= '' and cjson.decode(ARGV[12])

-- The same call again: its first reply was lost on the way.
if redis.call('EXISTS', job) == 1 then
  local leader = redis.call('HGET', job, 'alias')
  if leader then return {'follower', leader} end
  return {'leader', id}
end

local function enter(leader, deadline)
  redis.call('HSET', key('callers', leader), id, '{"at":' .. whole(now) .. ',"caller":' .. caller .. '}')
  if quota then redis.call('ZADD', key('open', quota.key), deadline, id) end
  redis.call('XADD', usage, '*', 'kind', 'accepted', 'at', whole(now), 'job', leader, 'caller', caller)
end

-- Joining must not cost the caller its answer: the leader needs about as much time as the caller would have, and an
-- interactive query does not wait in the batch line.
local function serves(status, leaders_deadline, leaders_priority)
  if status ~= 'queued' and status ~= 'running' then return false end
  local is_prompt = status == 'running' or tonumber(leaders_priority) <= tonumber(priority)
  return is_prompt and (leaders_deadline - now) * 2 >= time_left
end

local backlog = redis.call('XLEN', usage)
if backlog >= limits.usage then return {'backlog', whole(backlog)} end

local leader = coalesce and redis.call('GET', flight)
if leader then
  local found = redis.call('HMGET', key('job', leader), 'status', 'answer', 'deadline_at', 'priority')
  local status, answer, leaders_deadline, leaders_priority = unpack(found)
  if status == 'completed' and answer then
    record_hit(usage, unrecorded, limits.usage, caller, answer)
    return {'hit', answer}
  end
  if serves(status, leaders_deadline, leaders_priority) then
    local crowd = redis.call('HLEN', key('callers', leader))
    if crowd >= limits.callers then return {'crowded', whole(crowd)} end
    local over = quota and refusal({key = quota.key, open = quota.open, hold_usd = 0, hold_tokens = 0}, now)
    if over then return over end
    redis.call('HSET', job, 'alias', leader, 'created_at', whole(now), 'payload', payload)
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

-- An open job never expires by itself: it would leave the queue's count behind. finish.lua says for how long it is kept.
local deadline = now + time_left
redis.call('HSET', job, 'status', 'queued', 'created_at', whole(now), 'deadline_at', whole(deadline), 'tenant', tenant,
  'tier', tier, 'priority', priority, 'runs', '0', 'payload', payload)
local look_at = math.min(now + tonumber(ARGV[6]), deadline)
if ARGV[8] ~= '' then
  redis.call('HSET', job, 'start_by', whole(now + ARGV[8]))
  look_at = math.min(look_at, now + ARGV[8])
end
if quota then
  redis.call('HSET', job, 'quota', ARGV[12])
  hold(quota)
end
enter(id, deadline)
line_up(id, tier, priority, tenant)
redis.call('ZADD', due, look_at, id)
if coalesce then
  redis.call('HSET', job, 'flight', flight)
  redis.call('SET', flight, id, 'PX', ARGV[5])
end
return {'leader', id}
