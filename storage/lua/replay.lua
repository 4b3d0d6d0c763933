-- Give a dead letter another life: queued again, with its callers, its attempts and a new deadline.
-- KEYS: job, callers, attempts, due, usage stream, dead letters
-- ARGV: now or '', job id, deadline (ms from now), republish after (ms)
-- Returns {tier, priority}, or {} where it is no dead letter (any more).
local job, callers, attempts, due, usage, dead = unpack(KEYS)
local now, id = clock(ARGV[1]), ARGV[2]
if redis.call('ZREM', dead, id) == 0 then return {} end
local tier, priority, tenant = unpack(redis.call('HMGET', job, 'tier', 'priority', 'tenant'))
if not tier or redis.call('EXISTS', callers) == 0 then return {} end  -- kept too short: it has expired in between
local deadline = now + ARGV[3]
redis.call('HDEL', job, 'owner', 'lease_until', 'started_at', 'ended_at', 'answer', 'error', 'start_by', 'cancel_at', 'payer')
redis.call('HSET', job, 'status', 'queued', 'runs', '0', 'deadline_at', whole(deadline))
redis.call('HINCRBY', job, 'replays', 1)
for _, kept in ipairs({job, callers, attempts}) do redis.call('PERSIST', kept) end
line_up(id, tier, priority, tenant)
redis.call('ZADD', due, math.min(now + ARGV[4], deadline), id)
redis.call('XADD', usage, '*', 'kind', 'replayed', 'at', whole(now), 'job', id, 'tenant', tenant, 'tier', tier,
  'replays', redis.call('HGET', job, 'replays'))
return {tier, tonumber(priority)}
