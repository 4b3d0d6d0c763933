-- Undo an accept that its caller has given up, unless somebody else relies on the job.
-- KEYS: job, callers, attempts, due, mark of the withdrawal
-- ARGV: job id, keep the mark for (ms)
-- Returns 1 withdrawn, or never entered: then the mark keeps it out, should the accept be still on its way |
--   0 it stays: the reaper will ring for it.
local job, callers, attempts, due, withdrawn = unpack(KEYS)
local found = redis.call('HMGET', job, 'status', 'tier', 'flight', 'priority', 'tenant', 'runs', 'replays', 'alias')
local status, tier, flight, priority, tenant, runs, replays, alias = unpack(found)
if alias then return 0 end
if not status then
  redis.call('SET', withdrawn, '1', 'PX', ARGV[2])
  return 1
end
local has_begun = status ~= 'queued' or runs ~= '0' or replays
if has_begun or redis.call('HLEN', callers) > 1 or redis.call('HEXISTS', callers, ARGV[1]) == 0 then return 0 end
if flight and redis.call('GET', flight) == ARGV[1] then redis.call('DEL', flight) end
let_go(job)
sign_off(cjson.decode(redis.call('HGET', callers, ARGV[1])).caller)
step_out(ARGV[1], tier, priority, tenant)
redis.call('ZREM', due, ARGV[1])
redis.call('DEL', job, callers, attempts)
return 1
