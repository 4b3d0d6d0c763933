-- Take the job whose turn it is in a tier for one run. Nobody else can, until the lease runs out and the reaper puts it back.
-- KEYS: due, claimed (where this token's claim is remembered)
-- ARGV: now or '', tier, token, lease (ms), worker, batch share
-- Returns {job id, run, ms to the deadline (0 where it may not start any more), payload, created at}, or {} where nobody waits.
local due, claimed = unpack(KEYS)
local now, tier, token, lease = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])

-- The same call again: its first reply was lost on the way.
local id, is_new = redis.call('GET', claimed), false
if not id then id, is_new = next_in_line(tier, ARGV[6]), true end
if not id then return {} end

local job = key('job', id)
local found = redis.call('HMGET', job, 'runs', 'deadline_at', 'payload', 'created_at', 'start_by', 'owner')
local runs, deadline, payload, created, start_by, owner = unpack(found)
if is_new then
  runs = runs + 1
  redis.call('HSET', job, 'status', 'running', 'owner', token, 'worker', ARGV[5], 'runs', whole(runs),
    'lease_until', whole(now + lease), 'started_at', whole(now))
  redis.call('ZADD', key('running', tier), now, id)
  redis.call('ZADD', due, now + lease, id)
  redis.call('SET', claimed, id, 'PX', whole(lease))
elseif owner ~= token then
  return {}
end
local left = deadline - now
if start_by and tonumber(start_by) < now and tonumber(runs) == 1 then left = 0 end
return {id, tonumber(runs), left, payload, created}
