-- Prepended to the scripts about jobs: what an API key has used, and whether it may use more.
--
-- `spend` holds in nano-USD and tokens what was used `day` and `month` (UTC), and what is held for jobs that are not over;
-- `open` the callers whose jobs are not over, by deadline; `rate` the requests of this minute and the one before.
-- A quota is {key, open, tokens, day, month, hold_usd, hold_tokens}: limits, and what this job may cost at most.
local DAY_MS, MINUTE_MS, SOON_MS = 86400000, 60000, 1000

-- The calendar month of a day counted from 1970-01-01, as year * 12 + month (Howard Hinnant's civil_from_days).
local function month_of(day)
  local shifted = day + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  return (year + era * 400) * 12 + month
end

local function roll_over(spend, now)
  local day = math.floor(now / DAY_MS)
  local last, month = number_of(spend, 'day'), month_of(day)
  if last == day or last == day + 1 then return end  -- a little late: the clock is not always the same
  if last > day then  -- it was far ahead once: what was used then counts as used now
    redis.call('HSET', spend, 'day', day, 'month', month)
    return
  end
  redis.call('HSET', spend, 'day', day, 'day_usd', 0, 'day_tokens', 0)
  if number_of(spend, 'month') < month then redis.call('HSET', spend, 'month', month, 'month_usd', 0) end
  redis.call('PEXPIRE', spend, 40 * DAY_MS)
end

local function until_next_month(day, now)
  local month, first = month_of(day), day + 1
  while month_of(first) == month do first = first + 1 end
  return first * DAY_MS - now
end

-- {limit's name, ms until it may be worth another try}, or nil where the key may go on.
local function refusal(quota, now)
  local spend, open = key('spend', quota.key), key('open', quota.key)
  if quota.open then
    redis.call('ZREMRANGEBYSCORE', open, '-inf', now)
    if redis.call('ZCARD', open) >= quota.open then return {'open_jobs', SOON_MS} end
  end
  roll_over(spend, now)
  local day = math.floor(now / DAY_MS)
  local bounds = {
    {'tokens_day', quota.tokens, 'day_tokens', 'held_tokens', quota.hold_tokens, (day + 1) * DAY_MS - now},
    {'budget_day', quota.day, 'day_usd', 'held_usd', quota.hold_usd, (day + 1) * DAY_MS - now},
    {'budget_month', quota.month, 'month_usd', 'held_usd', quota.hold_usd, quota.month and until_next_month(day, now)},
  }
  for _, bound in ipairs(bounds) do
    local name, limit, used, held, more, renewed = unpack(bound, 1, 6)
    local spent = number_of(spend, used)
    if limit and spent + number_of(spend, held) + more > limit then
      return {name, spent + more <= limit and SOON_MS or renewed}  -- what is only held comes free when its jobs end
    end
  end
  return nil
end

local function hold(quota)
  redis.call('HINCRBY', key('spend', quota.key), 'held_usd', whole(quota.hold_usd))
  redis.call('HINCRBY', key('spend', quota.key), 'held_tokens', whole(quota.hold_tokens))
end

-- The end of a query: give back what its key held for it. A dead letter's may be held again.
local function let_go(job, is_kept)
  local text = redis.call('HGET', job, 'quota')
  if not text then return end
  local quota = cjson.decode(text)
  hold({key = quota.key, hold_usd = -quota.hold_usd, hold_tokens = -quota.hold_tokens})
  redis.call('HDEL', job, 'quota')
  if is_kept then redis.call('HSET', job, 'last_quota', text) end
end

local function charge(key_id, usd, tokens, now)
  local spend = key('spend', key_id)
  roll_over(spend, now)
  redis.call('HINCRBY', spend, 'day_usd', usd)
  redis.call('HINCRBY', spend, 'month_usd', usd)
  redis.call('HINCRBY', spend, 'day_tokens', tokens)
end

-- A caller that waits, and one that waits no longer.
local function sign_on(key_id, caller_id, deadline, now)
  redis.call('ZADD', key('open', key_id), deadline, caller_id)
  redis.call('PEXPIRE', key('open', key_id), math.max(deadline - now, DAY_MS) + DAY_MS)
end

local function sign_off(caller)
  if caller.key and caller.key ~= '' then redis.call('ZREM', key('open', caller.key), caller.id) end
end

-- Counts a request; ms to wait where the key has had its requests of the minute (a sliding window of two counters).
local function over_rate(key_id, per_minute, now)
  local rate, minute, passed = key('rate', key_id), math.floor(now / MINUTE_MS), now % MINUTE_MS
  local found = redis.call('HMGET', rate, 'minute', 'count', 'before')
  local age = minute - tonumber(found[1] or 0)
  local count = age == 0 and tonumber(found[2]) or 0
  local before = age == 0 and tonumber(found[3]) or age == 1 and tonumber(found[2]) or 0
  if before * (1 - passed / MINUTE_MS) + count + 1 > per_minute then
    if count + 1 > per_minute then return MINUTE_MS - passed end
    return math.max(1, math.ceil((1 - (per_minute - count - 1) / before) * MINUTE_MS - passed))
  end
  redis.call('HSET', rate, 'minute', minute, 'count', count + 1, 'before', before)
  redis.call('PEXPIRE', rate, 3 * MINUTE_MS)
  return nil
end
