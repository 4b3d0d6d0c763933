-- One caller no longer wants its answer. The job ends when the last of its callers has gone.
-- KEYS: job asked for, leader's job, callers, attempts, due, usage stream, done stream, tenants with dead letters,
--   stream of cancelled runs
-- ARGV: now or '', id asked for, leader's id, facts for the record (JSON), keep for (ms), most wake-ups kept
-- Returns 'cancelled' | 'cancelling': its call is being aborted | 'missing' | the status it ended with before
local own, job, callers, attempts, due, usage, done, tenants, cancelled = unpack(KEYS)
local now, id, leader = clock(ARGV[1]), ARGV[2], ARGV[3]
local status, cancel_at = unpack(redis.call('HMGET', job, 'status', 'cancel_at'))
if not status or redis.call('EXISTS', own) == 0 then return 'missing' end
if redis.call('HEXISTS', own, 'left_at') == 1 then return 'cancelled' end
if status ~= 'queued' and status ~= 'running' then return status end
if cancel_at then return 'cancelling' end

if redis.call('HLEN', callers) > 1 then
  local text = redis.call('HGET', callers, id)
  redis.call('HDEL', callers, id)
  redis.call('HSET', own, 'left_at', whole(now))
  let_go(own)
  if own ~= job then redis.call('HDEL', own, 'payload') end
  sign_off(cjson.decode(text).caller)
  redis.call('XADD', usage, '*', 'kind', 'left', 'at', whole(now), 'job', leader, 'caller', text,
    'text', redis.call('HGET', job, 'text') or '')
  redis.call('XADD', done, 'MAXLEN', '~', ARGV[6], '*', 'job', leader)
  return 'cancelled'
end
if status == 'running' then
  redis.call('HSET', job, 'cancel_at', whole(now))
  local flight = redis.call('HGET', job, 'flight')
  if flight and redis.call('GET', flight) == leader then redis.call('DEL', flight) end  -- nobody joins it any more
  redis.call('XADD', cancelled, 'MAXLEN', '~', ARGV[6], '*', 'job', leader)
  return 'cancelling'
end
end_job({id = leader, keys = {job, callers, attempts, due, usage, done, tenants}, now = now, status = 'cancelled',
  answer = '', problem = '', facts = ARGV[4], keep = ARGV[5], grace = '0', wake_ups = ARGV[6], usd = '0', tokens = '0',
  dead = false})
return 'cancelled'
