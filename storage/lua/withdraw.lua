-- Undo an accept whose message could not be published, unless somebody already relies on the job.
-- KEYS: job, callers, due
-- ARGV: job id
-- Returns 1 withdrawn, or never entered | 0 it stays: the reaper will ring for it.
local job, callers, due = unpack(KEYS)
local found = redis.call('HMGET', job, 'status', 'tier', 'flight')
local status, tier, flight = found[1], found[2], found[3]
if not status then return 1 end
if status ~= 'queued' or redis.call('HLEN', callers) > 1 then return 0 end
if flight and redis.call('GET', flight) == ARGV[1] then redis.call('DEL', flight) end
redis.call('ZREM', key('queued', tier), ARGV[1])
redis.call('ZREM', due, ARGV[1])
redis.call('DEL', job, callers)
return 1
