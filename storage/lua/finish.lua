-- End a job, once, and only by the token that holds it: result, cache, single flight, spend, usage and wake-up together.
-- KEYS: job, callers, attempts, due, usage stream, done stream, tenants with dead letters
-- ARGV: now or '', job id, token, status, answer or '', error (JSON) or '', facts for the record (JSON),
--       keep for (ms), cache key or '', cache ttl (ms), single-flight grace (ms) or 0, most wake-ups kept,
--       nano-USD to charge, tokens to charge, '1' for a dead letter, most dead letters, keep dead letters for (ms),
--       fingerprint of the answer that was cached or '', then attempts (JSON each)
-- Returns 1 ended now | 2 this token ended it before | 0 the job is not the token's
local job, attempts = KEYS[1], KEYS[3]
local now, id, token, status, answer = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local found = redis.call('HMGET', job, 'status', 'owner', 'cancel_at')
local current, owner, cancel_at = unpack(found)
if owner ~= token then return 0 end
if current ~= 'running' then return 2 end

if #ARGV > 18 then redis.call('RPUSH', attempts, unpack(ARGV, 19)) end
if ARGV[9] ~= '' then redis.call('SET', ARGV[9], answer, 'PX', ARGV[10]) end
if cancel_at then status = 'cancelled' end  -- whatever became of its last call; what that cost stays on record
end_job({id = id, keys = KEYS, now = now, status = status, answer = answer, problem = cancel_at and '' or ARGV[6], facts = ARGV[7],
  keep = ARGV[8], grace = ARGV[11], wake_ups = ARGV[12], usd = ARGV[13], tokens = ARGV[14], cached = ARGV[18],
  dead = not cancel_at and ARGV[15] == '1' and {most = tonumber(ARGV[16]), keep = ARGV[17]}})
return 1
