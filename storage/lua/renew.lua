-- Keep a claimed job for another lease; but not for ever: a run that outlives its job's deadline by a lease hangs.
-- KEYS: job, due
-- ARGV: now or '', job id, token, lease (ms)
-- Returns 1 | 0 where the job is no longer the token's, or nobody wants it any more.
local job, due = unpack(KEYS)
local now, lease = clock(ARGV[1]), tonumber(ARGV[4])
local status, owner, cancel_at, deadline = unpack(redis.call('HMGET', job, 'status', 'owner', 'cancel_at', 'deadline_at'))
if status ~= 'running' or owner ~= ARGV[3] or now > deadline + lease then return 0 end
redis.call('HSET', job, 'lease_until', whole(now + lease))
redis.call('ZADD', due, now + lease, ARGV[2])
return cancel_at and 0 or 1
