-- Prepended to the scripts about jobs: the one way a job ends.

-- Who pays: the caller whose job it was; where that one has cancelled, the first of those that stayed.
local function payer_of(id, callers)
  local payer
  for _, one in ipairs(callers) do
    if one.caller.id == id then return one.caller end
    if not payer or one.at < payer.at then payer = one end
  end
  return payer and payer.caller or {id = id}
end

-- `ending`: id, keys (job, callers, attempts, due, usage, done, tenants with dead letters), now, status, answer, problem, facts, keep
-- and grace (ms), wake_ups, usd and tokens to charge, cached (fingerprint, if the answer is), dead ({most, keep (ms)} or false).
local function end_job(ending)
  local job, callers, attempts, due, usage, done, tenants = unpack(ending.keys)
  local id, now, status, keep = ending.id, ending.now, ending.status, ending.keep
  local found = redis.call('HMGET', job, 'tier', 'priority', 'tenant', 'flight', 'created_at', 'started_at', 'replays', 'text')
  local tier, priority, tenant, flight, created, started, replays, text = unpack(found)

  redis.call('ZREM', key('running', tier), id)
  step_out(id, tier, priority, tenant)
  redis.call('ZREM', due, id)
  if flight and redis.call('GET', flight) == id then
    -- A query that missed the cache a moment ago still finds the finished job, and does not ask the provider again.
    if ending.grace ~= '0' then redis.call('PEXPIRE', flight, ending.grace) else redis.call('DEL', flight) end
  end
  if status == 'completed' or status == 'failed' then  -- what expires says nothing of how fast a tier works
    redis.call('LPUSH', key('drain', tier), whole(now))
    redis.call('LTRIM', key('drain', tier), 0, 63)
  end

  local texts, asked = redis.call('HVALS', callers), {}
  for place, text in ipairs(texts) do asked[place] = cjson.decode(text) end
  local payer = payer_of(id, asked)
  if payer.key and payer.key ~= '' then charge(payer.key, ending.usd, ending.tokens, now) end
  if ending.dead then keep = ending.dead.keep end
  local is_given_up = status == 'cancelled' or status == 'expired'  -- then nobody reads its texts again
  if is_given_up then redis.call('HDEL', job, 'payload') end
  for _, one in ipairs(asked) do
    local own = key('job', one.caller.id)
    let_go(own, ending.dead)
    sign_off(one.caller)
    if is_given_up then redis.call('HDEL', own, 'payload') end
    redis.call('PEXPIRE', own, keep)
  end

  redis.call('HSET', job, 'status', status, 'ended_at', whole(now), 'payer', payer.id,
    'answer', ending.answer, 'error', ending.problem)
  redis.call('XADD', usage, '*', 'kind', 'ended', 'at', whole(now), 'job', id, 'status', status, 'facts', ending.facts,
    'created_at', created, 'started_at', started or whole(now), 'payer', payer.id, 'replays', replays or '0', 'text', text or '',
    'callers', json_array(texts), 'attempts', json_array(redis.call('LRANGE', attempts, 0, -1)))
  redis.call('XADD', done, 'MAXLEN', '~', ending.wake_ups, '*', 'job', id, 'answer', ending.cached or '')

  if ending.dead then  -- it may be replayed: for its callers, with its attempts
    local dead = key('dead', tenant)
    redis.call('SADD', tenants, tenant)
    redis.call('ZADD', dead, now, id)
    redis.call('PEXPIRE', dead, keep)
    redis.call('ZREMRANGEBYRANK', dead, 0, -ending.dead.most - 1)
    redis.call('ZREMRANGEBYSCORE', dead, '-inf', now - keep)
    redis.call('PEXPIRE', callers, keep)
  else
    redis.call('DEL', callers)
  end
  redis.call('PEXPIRE', job, keep)
  redis.call('PEXPIRE', attempts, keep)
end
