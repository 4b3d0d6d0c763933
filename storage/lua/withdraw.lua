-- Undo an accept whose message could not be published, unless somebody already relies on the job.
-- KEYS: job, callers, due
-- ARGV: job id
-- Returns 1 withdrawn, or never entered | 0 it stays: the reaper will ring for it.
local job, callers, due = unpack(KEYS)
local found = redis.call('HMGET', job, 'status', 'tier', 'flight', 'priority', 'tenant')
local status, tier, flight, priority, tenant = unpack(found)
if not status then return 1 end
if status ~= 'queued' or redis.call('HLEN', callers) > 1 then return 0 end
if flight and redis.call('GET', flight) == ARGV[1] then redis.call('DEL', flight) end
let_go(job)
for _, text in ipairs(redis.call('HVALS', callers)) do sign_off(cjson.decode(text).caller) end
step_out(ARGV[1], tier, priority, tenant)
redis.call('ZREM', due, ARGV[1])
redis.call('DEL', job, callers)
return 1
