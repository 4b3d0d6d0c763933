-- Take a queued job for one run. Nobody else can, until the lease runs out and the reaper puts the job back.
-- KEYS: job, due
-- ARGV: now or '', job id, token, lease (ms), worker
-- Returns {'claimed', run, ms to the deadline, tier, payload, created at} | {'missing'} | {its status}
local job, due = unpack(KEYS)
local now, id, token = clock(ARGV[1]), ARGV[2], ARGV[3]
local found = redis.call('HMGET', job, 'status', 'owner', 'runs', 'deadline_at', 'tier', 'payload', 'created_at')
local status, owner, runs, deadline, tier, payload, created = unpack(found)
if not status then return {'missing'} end
if status == 'queued' then
  local lease_until = now + tonumber(ARGV[4])
  runs = runs + 1
  redis.call('HSET', job, 'status', 'running', 'owner', token, 'worker', ARGV[5], 'runs', whole(runs),
    'lease_until', whole(lease_until), 'started_at', whole(now))
  redis.call('ZREM', key('queued', tier), id)
  redis.call('ZADD', key('running', tier), now, id)
  redis.call('ZADD', due, lease_until, id)
elseif not (status == 'running' and owner == token) then  -- our own token: the first reply was lost on the way
  return {status}
end
return {'claimed', tonumber(runs), deadline - now, tier, payload, created}
