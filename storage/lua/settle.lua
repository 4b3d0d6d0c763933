-- Give a ticket back and learn from how its call ended.
-- KEYS: lane's state, flights, key's state, target's mark of being gone, usage stream
-- ARGV: now or '', ticket or '', outcome, latency (ms), retry after (ms) or '', most in flight, breaker failures,
--       breaker open (ms), most usage entries, target, key id,
--       then of requests and of tokens: limit, remaining, reset (ms), each or ''
local lane_key, flights, key_key, gone, usage = unpack(KEYS)
local now, ticket, outcome, latency = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local retry_in, most = tonumber(ARGV[5]), tonumber(ARGV[6])
local target, key_id = ARGV[10], ARGV[11]
local said = {
  requests = {limit = tonumber(ARGV[12]), remaining = tonumber(ARGV[13]), reset_in = tonumber(ARGV[14])},
  tokens = {limit = tonumber(ARGV[15]), remaining = tonumber(ARGV[16]), reset_in = tonumber(ARGV[17])},
}
local GONE_FOR, KEY_OPEN = 3600000, 60000
local BACKOFF, SAME_TROUBLE = 50, 2000  -- ms; throttled again so soon after the pause is the same trouble
local MANY_STRIKES = 3
local ROUNDED = 500  -- ms by which a Retry-After of whole seconds (RFC 9110) is too long on average
local FIRST_GROWTH, LAST_GROWTH = 2000, 60000  -- ms between steps of the limit in flight

local lane, key_state = read(lane_key), read(key_key)
redis.call('ZREMRANGEBYSCORE', flights, '-inf', now)
local flying = redis.call('ZCARD', flights)
redis.call('ZREM', flights, ticket)

local call = granted(ticket)

-- Each change is told once. Where the stream is full it is not: /health shows the state all the same.
local function alert(kind, facts)
  if redis.call('XLEN', usage) >= tonumber(ARGV[9]) then return end
  redis.pcall('XADD', usage, '*', 'kind', 'alert', 'at', whole(now), 'alert', kind, 'target', target,
    'key_id', key_id, 'facts', cjson.encode(facts))
end

-- A call that a breaker let through, or one that is free of it. Stragglers from before it opened decide nothing.
local function counts_for(state) return not state.open_until or state.probe == ticket end

local function release_probe(state)
  if state.probe == ticket then state.probe, state.probe_in = nil, nil end
end

local function grow_limit()
  local limit = limit_of(lane, most)
  if flying < math.floor(limit) or limit >= most or now < (lane.grow_at or 0) then return end
  lane.limit = math.min(most, limit + math.max(1, math.floor(limit / 8)))
  if lane.grown_from then lane.grow_wait = math.max(FIRST_GROWTH, (lane.grow_wait or 0) / 2) end
  lane.grown_from, lane.grow_at = limit, now + (lane.grow_wait or FIRST_GROWTH)
end

local function succeed()
  lane.latency = 0.8 * (lane.latency or latency) + 0.2 * latency
  if lane.open_until and lane.probe == ticket then
    close(lane)
    alert('breaker_closed', {reason = outcome})
  elseif not lane.open_until then
    lane.failures = nil
  end
  if key_state.open_until and key_state.probe == ticket then
    close(key_state)
    alert('key_restored', {reason = outcome})
  end
  grow_limit()
  grow_rate(lane, now)
end

local function fail()
  if not counts_for(lane) then return end
  lane.failures = (lane.failures or 0) + 1
  if not lane.open_until and lane.failures < tonumber(ARGV[7]) then return end
  local is_news = not lane.open_until
  trip(lane, tonumber(ARGV[8]), now)
  if is_news then alert('breaker_opened', {reason = outcome, until_ms = lane.open_until, failures = lane.failures}) end
end

local function reject_key()
  if not counts_for(key_state) then return end
  local is_news = not key_state.open_until
  trip(key_state, KEY_OPEN, now)
  if is_news then alert('key_rejected', {reason = outcome, until_ms = key_state.open_until}) end
end

local function lose_model()
  local until_ms = now + GONE_FOR
  if redis.call('SET', gone, whole(until_ms), 'NX', 'PX', GONE_FOR) then
    alert('model_gone', {reason = outcome, until_ms = until_ms})
  end
end

-- ms to the reset of what the headers call used up; nil where they do not explain the throttling.
local function explained()
  for kind, need in pairs({requests = 1, tokens = math.max(1, call.tokens)}) do
    local left = said[kind].remaining
    if left and left < need then return said[kind].reset_in or 1000 end
  end
end

-- The limit becomes what the provider carried of the burst: the calls in flight when the last of those it threw out was
-- granted, less their number; at least a quarter. So a burst is one cut, however many of it come back throttled.
-- Where it was a step of growth that went too far, it is taken back, and the next one is tried later.
local function cut_limit()
  if not lane.event_floor then
    lane.event_floor, lane.grown_from = lane.grown_from or 0, nil
    lane.grow_wait = math.min(LAST_GROWTH, 2 * (lane.grow_wait or FIRST_GROWTH))
    lane.grow_at = now + lane.grow_wait
  end
  local carried, floor = lane.event_flying - lane.event_throttled, lane.event_floor
  if carried >= floor / 2 then carried = math.max(carried, floor) end
  lane.limit = math.max(1, math.floor(math.min(lane.event_limit, math.max(carried, lane.event_flying / 4))))
  lane.learning = nil
end

local function begin_event()
  local again = now - math.max(lane.paused_until or 0, lane.event_at or 0) < SAME_TROUBLE
  lane.strikes = again and (lane.strikes or 0) + 1 or 1
  lane.event_seq, lane.event_at, lane.event_flying, lane.event_throttled = lane.seq or 0, now, 0, 0
  lane.event_limit, lane.event_floor = limit_of(lane, most), nil
end

local function throttle()
  lane.served = math.max(0, (lane.served or 0) - 1)
  if not lane.event_at or (call.seq or 0) > lane.event_seq then begin_event() end
  lane.event_throttled, lane.event_flying = lane.event_throttled + 1, math.max(lane.event_flying, call.flying)
  local pause, reset_in = math.min(LONGEST_HOLD, BACKOFF * 2 ^ lane.strikes), explained()
  if reset_in then
    pause = retry_in or reset_in
  elseif retry_in or lane.strikes >= MANY_STRIKES or lane.event_flying <= 1 or is_kept_back(lane, now) then
    -- Time heals it, or fewer at a time did not, or there are no fewer, or the rate was at its limit: it is the rate.
    -- `learn_rate` looks at it when the pause is over.
    lane.learning = 1
    lane.rounded = (retry_in or 0) > 0 and retry_in % 1000 == 0 and ROUNDED or 0
    pause = lane.strikes < MANY_STRIKES and retry_in or math.max(pause, retry_in or 0)
  else
    cut_limit()
  end
  lane.paused_until = math.max(lane.paused_until or 0, math.ceil(now + math.min(pause, LONGEST_HOLD)))
end

if call.seq then
  local flown = flown_in(flights)
  for kind, of_kind in pairs(said) do learn_quota(lane, kind, of_kind, flown, call.seq, now) end
end
local learn = ({
  ok = succeed,
  throttled = throttle,
  overloaded = fail,
  unreachable = fail,
  timed_out = fail,
  reply_unusable = fail,
  key_rejected = reject_key,
  model_gone = lose_model,
})[outcome]
if learn then learn() end
release_probe(lane)
release_probe(key_state)
save(lane)
save(key_state)
