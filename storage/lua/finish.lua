-- End a job, once, and only by the token that holds it: result, cache, single flight, usage and wake-up together.
-- KEYS: job, callers, attempts, due, usage stream, done stream
-- ARGV: now or '', job id, token, status, answer or '', error (JSON) or '', facts for the record (JSON),
--       keep for (ms), cache key or '', cache ttl (ms), single-flight grace (ms) or 0, then attempts (JSON each)
-- Returns 1 ended now | 2 this token ended it before | 0 the job is not the token's
local job, callers, attempts, due, usage, done = unpack(KEYS)
local now, id, token, status = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local answer, problem, facts, keep = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local found = redis.call('HMGET', job, 'status', 'owner', 'tier', 'flight', 'created_at', 'started_at')
local current, owner, tier, flight, created, started = unpack(found)
if owner ~= token then return 0 end
if current ~= 'running' then return 2 end

redis.call('HSET', job, 'status', status, 'ended_at', whole(now), 'answer', answer, 'error', problem)
if #ARGV > 11 then redis.call('RPUSH', attempts, unpack(ARGV, 12)) end
redis.call('ZREM', key('running', tier), id)
redis.call('ZREM', due, id)
if ARGV[9] ~= '' then redis.call('SET', ARGV[9], answer, 'PX', ARGV[10]) end

if flight and redis.call('GET', flight) == id then
  -- A query that missed the cache a moment ago still finds the finished job, and does not ask the provider again.
  if ARGV[11] ~= '0' then redis.call('PEXPIRE', flight, ARGV[11]) else redis.call('DEL', flight) end
end

if status == 'completed' or status == 'failed' then  -- what expires says nothing of how fast a tier works
  local drain = key('drain', tier)
  redis.call('LPUSH', drain, whole(now))
  redis.call('LTRIM', drain, 0, 63)
end

redis.call('XADD', usage, '*', 'kind', 'ended', 'at', whole(now), 'job', id, 'status', status, 'facts', facts,
  'created_at', created, 'started_at', started,
  'callers', json_array(redis.call('HVALS', callers)), 'attempts', json_array(redis.call('LRANGE', attempts, 0, -1)))
redis.call('XADD', done, 'MAXLEN', '~', 10000, '*', 'job', id)
redis.call('DEL', callers)
redis.call('PEXPIRE', job, keep)
redis.call('PEXPIRE', attempts, keep)
return 1
