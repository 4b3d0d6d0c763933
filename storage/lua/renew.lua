-- Keep a claimed job for another lease.
-- KEYS: job, due
-- ARGV: now or '', job id, token, lease (ms)
-- Returns 1, or 0 where the job is no longer the token's.
local job, due = unpack(KEYS)
local found = redis.call('HMGET', job, 'status', 'owner')
if found[1] ~= 'running' or found[2] ~= ARGV[3] then return 0 end
local lease_until = clock(ARGV[1]) + tonumber(ARGV[4])
redis.call('HSET', job, 'lease_until', whole(lease_until))
redis.call('ZADD', due, lease_until, ARGV[2])
return 1
