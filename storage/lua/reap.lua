-- Look after one job that is due: ring again, put back what a dead worker held, or take it to end it.
-- KEYS: job, attempts, due
-- ARGV: now or '', job id, reaper's token, lease (ms), republish after (ms), most runs
-- Returns {verdict, tier, priority, runs}; verdict:
--   'gone'       nothing to do, the job has ended or was never there
--   'early'      not due after all, or its tier's queue still holds a message for every waiting job
--   'ring'       queued: publish a message (again)
--   'expired'    past a deadline                       } now held by the reaper's token,
--   'dead'       out of runs                           } to be finished with that status
--   'cancelled'  cancelled, and its worker is gone     }
local job, attempts, due = unpack(KEYS)
local now, id, lease = clock(ARGV[1]), ARGV[2], tonumber(ARGV[4])

-- A server clock that was set back would keep the job for as long as it was wrong.
local function set_back()
  local created = redis.call('HGET', job, 'created_at')
  local ahead = created and created - now or 0
  if ahead <= 1000 then return end
  for _, moment in ipairs({'created_at', 'deadline_at', 'start_by'}) do
    if redis.call('HEXISTS', job, moment) == 1 then redis.call('HINCRBY', job, moment, -ahead) end
  end
end

set_back()
local found = redis.call('HMGET', job, 'status', 'tier', 'priority', 'runs', 'deadline_at', 'lease_until',
  'started_at', 'owner', 'tenant', 'cancel_at', 'start_by')
local status, tier, priority, runs, deadline, lease_until, started, owner, tenant, cancel_at, start_by = unpack(found)

if status ~= 'queued' and status ~= 'running' then
  redis.call('ZREM', due, id)
  return {'gone'}
end
runs, deadline = tonumber(runs), tonumber(deadline)
if start_by and runs == 0 then deadline = math.min(deadline, tonumber(start_by)) end

if status == 'running' then
  lease_until = math.min(tonumber(lease_until), now + lease)
  if lease_until > now then
    redis.call('HSET', job, 'lease_until', whole(lease_until))
    redis.call('ZADD', due, lease_until, id)
    return {'early'}
  end
  if string.sub(owner, 1, 7) ~= 'reaper:' then
    redis.call('RPUSH', attempts, '{"outcome":"worker_lost","billing":"unknown","started_at":' .. started .. '}')
  end
end

local verdict = 'ring'
if cancel_at then
  verdict = 'cancelled'
elseif deadline <= now then
  verdict = 'expired'
elseif runs >= tonumber(ARGV[6]) then
  verdict = 'dead'
elseif status == 'queued' and messages_in(tier) >= queued_in(tier) then
  verdict = 'early'  -- a long queue is not a lost message
end

if verdict == 'early' or verdict == 'ring' then
  redis.call('ZADD', due, math.min(now + tonumber(ARGV[5]), deadline), id)
end
if verdict == 'ring' and status == 'running' then
  redis.call('HSET', job, 'status', 'queued')
  redis.call('HDEL', job, 'owner', 'lease_until')
  redis.call('ZREM', key('running', tier), id)
  line_up(id, tier, priority, tenant, true)
elseif verdict ~= 'early' and verdict ~= 'ring' then
  redis.call('HSET', job, 'status', 'running', 'owner', ARGV[3], 'lease_until', whole(now + lease))
  redis.call('HSETNX', job, 'started_at', whole(now))
  step_out(id, tier, priority, tenant)
  redis.call('ZADD', key('running', tier), now, id)
  redis.call('ZADD', due, now + lease, id)
end
return {verdict, tier, tonumber(priority), runs}
