-- Drop a job with all that belongs to it, whatever its state. A worker that runs it finds that it is gone.
-- KEYS: job, callers, attempts, due   ARGV: job id   Returns 1 dropped | 0 there was none.
local job, callers, attempts, due = unpack(KEYS)
local tier, priority, tenant, leader = unpack(redis.call('HMGET', job, 'tier', 'priority', 'tenant', 'alias'))
if leader then
  local text = redis.call('HGET', key('callers', leader), ARGV[1])
  if text then sign_off(cjson.decode(text).caller) end
  redis.call('HDEL', key('callers', leader), ARGV[1])
end
if tier then
  step_out(ARGV[1], tier, priority, tenant)
  redis.call('ZREM', key('running', tier), ARGV[1])
  for _, text in ipairs(redis.call('HVALS', callers)) do sign_off(cjson.decode(text).caller) end
end
let_go(job)
redis.call('ZREM', due, ARGV[1])
redis.call('ZREM', key('dead', tenant or ''), ARGV[1])
return redis.call('UNLINK', job, callers, attempts) > 0 and 1 or 0
