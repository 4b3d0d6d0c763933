-- Prepended to the scripts about jobs: the waiting lines of a tier, and who is next.
--
-- A tier has a line for each priority, a sorted set of job ids. Within it tenants share alike (start-time fair queueing:
-- a job's score is one more than its tenant's last, or than the line's virtual time where that is later), so a tenant
-- with a thousand jobs waits behind itself, and another one's first job is next but one. `share` holds per line
-- `now:<priority>`, and `last:` and `count:<priority>:<tenant>` of the tenants that wait, and the batch line's credit.
local INTERACTIVE, BATCH = '0', '9'

local function line_of(tier, priority)
  return key('queued', priority == INTERACTIVE and tier or tier .. ':' .. priority)
end

local function number_of(hash, field) return tonumber(redis.call('HGET', hash, field) or 0) end

local function waiting_of(tier, tenant)
  local share = key('share', tier)
  return number_of(share, 'count:' .. INTERACTIVE .. ':' .. tenant) + number_of(share, 'count:' .. BATCH .. ':' .. tenant)
end

-- `is_first`: a job that had its turn and lost its worker does not wait for another one.
local function line_up(id, tier, priority, tenant, is_first)
  local share, whose = key('share', tier), priority .. ':' .. tenant
  local score = number_of(share, 'now:' .. priority)
  if not is_first then
    score = math.max(score, number_of(share, 'last:' .. whose)) + 1
    redis.call('HSET', share, 'last:' .. whose, whole(score))
  end
  if redis.call('ZADD', line_of(tier, priority), 'NX', whole(score), id) == 1 then
    redis.call('HINCRBY', share, 'count:' .. whose, 1)
  end
end

local function step_out(id, tier, priority, tenant)
  if redis.call('ZREM', line_of(tier, priority), id) == 0 then return end
  local share, whose = key('share', tier), priority .. ':' .. tenant
  if redis.call('HINCRBY', share, 'count:' .. whose, -1) <= 0 then
    redis.call('HDEL', share, 'count:' .. whose, 'last:' .. whose)
  end
end

-- The job whose turn it is, taken out of its line; false where nobody waits. Where both lines wait, batch gets its share.
local function next_in_line(tier, batch_share)
  local share = key('share', tier)
  local prompt = redis.call('ZRANGE', line_of(tier, INTERACTIVE), 0, 0, 'WITHSCORES')
  local batch = redis.call('ZRANGE', line_of(tier, BATCH), 0, 0, 'WITHSCORES')
  local head, priority, credit = prompt, INTERACTIVE, nil
  if prompt[1] and batch[1] then
    credit = number_of(share, 'credit') + batch_share
    if credit >= 1 then head, priority, credit = batch, BATCH, credit - 1 end
  elseif batch[1] then
    head, priority = batch, BATCH
  end
  local id, score = head[1], tonumber(head[2])
  if not id then return false end
  step_out(id, tier, priority, redis.call('HGET', key('job', id), 'tenant') or '')
  if credit then redis.call('HSET', share, 'credit', tostring(credit)) end
  if score > number_of(share, 'now:' .. priority) then redis.call('HSET', share, 'now:' .. priority, whole(score)) end
  return id
end

-- Messages that the broker holds for the tier, in its lists (one a priority).
local function messages_in(tier)
  return redis.call('LLEN', tier) + redis.call('LLEN', tier .. ':' .. BATCH)
end

local function queued_in(tier)
  return redis.call('ZCARD', line_of(tier, INTERACTIVE)) + redis.call('ZCARD', line_of(tier, BATCH))
end
