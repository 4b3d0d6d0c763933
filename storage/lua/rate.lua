-- Prepended to the scripts of admission: how many calls a second. The operator's number, or what throttling taught.
-- Fields: tat, when the next call is due; rate (calls/ms), learned; good, the last rate that went well; step, of growth;
-- is_rough: the rate is an estimate, no limit was felt near it; stride, for how long a rate is tried (ms);
-- hold_until, hold: no growth before, and for how long it was meant to be; held_at: when the rate last kept a call back;
-- served_at, served and before_at, before: calls granted and not throttled, in this and the last stretch of time.
local SPREAD = 12  -- ms that a call may come early: it makes good for askers who come late, and is all the burst there is
local PRUDENCE = 0.98  -- part of the operator's number that we use: clocks and networks are not exact
local STRETCH = 10000  -- ms
local FEWEST = 5  -- served calls that make a rate
local LATELY = 1000  -- ms
local SMALL_STEP, LARGEST_STEP = 0.02, 0.25
local STEADY_STEPS = 4  -- before they get larger
local LARGE_GAP = 0.05  -- between the last rate that went well and the one that did not
local STRIDE, LONGEST_STRIDE = 2000, 60000  -- ms that a rate is tried for: two of the provider's windows
local LONG_HOLD, LONGEST_RATE_HOLD = 30000, 240000
local SLOWEST = 1 / 60000

-- Calls a ms; nil where nothing is known.
local function rate_of(lane, per_minute)
  local given = per_minute and per_minute * PRUDENCE / 60000
  if given and lane.rate then return math.min(given, lane.rate) end
  return given or lane.rate
end

local function count_served(lane, now)
  if now - (lane.served_at or 0) > STRETCH then
    lane.before_at, lane.before = lane.served_at, lane.served
    lane.served_at, lane.served = now, 0
    if (lane.before_at or 0) < now - 2 * STRETCH then lane.before_at, lane.before = nil, nil end
  end
  lane.served = lane.served + 1
end

local function set_rate(lane, rate, hold, now)
  lane.rate, lane.hold, lane.hold_until = math.max(rate, SLOWEST), hold, now + hold
  lane.good, lane.step, lane.stepped_at = nil, 0, now
end

-- What the provider really served, from the start of the stretch to the moment it would serve again; `rounded` (ms) is
-- by how much that moment was probably rounded up.
local function served_rate(lane)
  local from, served = lane.before_at or lane.served_at, (lane.before or 0) + (lane.served or 0)
  if not from or served < FEWEST then return nil end
  return served / math.max(1, lane.paused_until - lane.rounded - from)
end

-- Whether the rate, rather than a lack of queries or of slots, was what kept calls back until now.
local function is_kept_back(lane, at)
  return lane.held_at and lane.held_at >= at - LATELY
end

-- Called by the first who asks after the pause: by now it is known which calls of the burst were served.
local function learn_rate(lane, per_minute, now)
  local rate = rate_of(lane, per_minute)
  lane.stride = math.max(STRIDE, math.min(2 * (lane.paused_until - lane.event_at), LONGEST_STRIDE))
  local long = math.min(math.max(2 * (lane.hold or 0), LONG_HOLD), LONGEST_RATE_HOLD)
  if not (rate and is_kept_back(lane, lane.event_at)) then
    local served = served_rate(lane)
    if served then set_rate(lane, math.min(0.975 * served, lane.rate or math.huge), lane.stride, now) end
    lane.is_rough = 1
  elseif lane.strikes > 1 or lane.is_rough and not lane.good then
    set_rate(lane, rate * (1 - 0.05 * math.max(1, math.min(lane.strikes - 1, 4))), lane.stride, now)
    lane.is_rough = 1
  elseif not lane.good then
    set_rate(lane, 0.985 * rate, math.max(lane.hold or 0, LONG_HOLD), now)
  elseif rate > (1 + LARGE_GAP) * lane.good then  -- the limit is somewhere between: look in smaller steps
    set_rate(lane, 0.99 * lane.good, lane.stride, now)
  else
    set_rate(lane, 0.99 * lane.good, long, now)
    lane.is_rough = nil
  end
  lane.tat = math.max(lane.tat or 0, now + SPREAD)  -- a provider that has only just room again has none for two
  lane.learning, lane.before_at, lane.before = nil, nil, nil
  lane.served_at, lane.served = now, 0
end

-- Grows only where the rate keeps calls back: in small steps at first, which find a limit that is near without waste,
-- then in larger and larger ones.
local function grow_rate(lane, now)
  if not lane.rate or lane.learning or now < lane.hold_until or now - lane.stepped_at < lane.stride then return end
  lane.stepped_at = now
  if not is_kept_back(lane, now) then return end
  lane.good, lane.step = lane.rate, lane.step + 1
  local step = SMALL_STEP * 2 ^ math.max(0, lane.step - STEADY_STEPS)
  lane.rate = lane.rate * (1 + math.min(step, LARGEST_STEP))
  if lane.step > 2 * STEADY_STEPS then lane.hold = nil end  -- what the last throttling taught is out of date
end
