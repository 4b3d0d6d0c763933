-- Give a dead letter another life: queued again, with its callers, its attempts and a new deadline.
-- KEYS: job, callers, attempts, due, usage stream
-- ARGV: now or '', job id, deadline (ms from now), republish after (ms), keep for (ms)
-- Returns {'replayed', tier, priority} | {'unknown'}: no dead letter (any more) |
--   {limit's name, ms to wait}: a key it is for may not spend as much now
local job, callers, attempts, due, usage = unpack(KEYS)
local now, id, keep = clock(ARGV[1]), ARGV[2], tonumber(ARGV[5])
local tier, priority, tenant = unpack(redis.call('HMGET', job, 'tier', 'priority', 'tenant'))
local dead = key('dead', tenant or '')
if not redis.call('ZSCORE', dead, id) or redis.call('EXISTS', callers) == 0 then return {'unknown'} end

local deadline, quotas = now + ARGV[3], {}
for _, caller in ipairs(redis.call('HKEYS', callers)) do
  local text = redis.call('HGET', key('job', caller), 'last_quota')
  local quota = text and cjson.decode(text)
  local over = quota and refusal({key = quota.key, tokens = quota.tokens, day = quota.day, month = quota.month,
    hold_usd = quota.hold_usd, hold_tokens = quota.hold_tokens}, now)
  if over then return over end
  if quota then quotas[caller] = {quota, text} end
end

redis.call('ZREM', dead, id)
redis.call('HDEL', job, 'owner', 'lease_until', 'started_at', 'ended_at', 'answer', 'error', 'start_by', 'cancel_at', 'payer')
redis.call('HSET', job, 'status', 'queued', 'runs', '0', 'deadline_at', whole(deadline))
redis.call('HINCRBY', job, 'replays', 1)
for _, caller in ipairs(redis.call('HKEYS', callers)) do redis.call('PEXPIRE', key('job', caller), deadline - now + keep) end
for _, kept in ipairs({job, callers, attempts}) do redis.call('PERSIST', kept) end
for caller, held in pairs(quotas) do
  redis.call('HSET', key('job', caller), 'quota', held[2])
  hold(held[1])
  sign_on(held[1].key, caller, deadline, now)
end
line_up(id, tier, priority, tenant)
redis.call('ZADD', due, math.min(now + ARGV[4], deadline), id)
redis.call('XADD', usage, '*', 'kind', 'replayed', 'at', whole(now), 'job', id, 'tenant', tenant, 'tier', tier,
  'replays', redis.call('HGET', job, 'replays'))
return {'replayed', tier, tonumber(priority)}
