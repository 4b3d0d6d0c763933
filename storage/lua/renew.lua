-- Keep a claimed job for another lease.
-- KEYS: job, due
-- ARGV: now or '', job id, token, lease (ms)
-- Returns 1 | 0 where the job is no longer the token's, or nobody wants it any more.
local job, due = unpack(KEYS)
local status, owner, cancel_at = unpack(redis.call('HMGET', job, 'status', 'owner', 'cancel_at'))
if status ~= 'running' or owner ~= ARGV[3] then return 0 end
local lease_until = clock(ARGV[1]) + tonumber(ARGV[4])
redis.call('HSET', job, 'lease_until', whole(lease_until))
redis.call('ZADD', due, lease_until, ARGV[2])
return cancel_at and 0 or 1
