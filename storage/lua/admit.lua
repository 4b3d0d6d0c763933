-- Grant a call on the first lane that is free, or say when to ask again.
-- KEYS: for each lane: its state, its flights, its key's state, its target's mark of being gone
-- ARGV: now or '', nonce, tokens, ticket's life (ms), most in flight, then requests a minute of each lane or ''
-- Returns {lane's number, ticket, 1 for a probe} | {0, ms to wait, reason}
local now, nonce, tokens = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local life, most = tonumber(ARGV[4]), tonumber(ARGV[5])
local PROBE_POLL = 500
local LONGEST_LINE = 1000  -- ms; see `place_in_line`

local function survey(n)
  local lane_key, flights, key_key, gone = unpack(KEYS, 4 * n - 3, 4 * n)
  local lane, per_minute = read(lane_key), tonumber(ARGV[5 + n])
  local seen = {n = n, lane = lane, key = read(key_key), flights = flights, ready = now, reason = 'busy'}
  local function hold(at, reason)
    if at > seen.ready then seen.ready, seen.reason = at, reason end
  end

  hold(tonumber(redis.call('GET', gone) or 0), 'broken')
  for _, state in ipairs({lane, seen.key}) do
    if state.open_until then
      hold(is_probing(state, now) and now + PROBE_POLL or state.open_until, 'broken')
    end
  end
  hold(lane.paused_until or 0, 'paused')
  if lane.learning and lane.paused_until <= now then learn_rate(lane, per_minute, now) end

  redis.call('ZREMRANGEBYSCORE', flights, '-inf', now)
  local flying, limit = redis.call('ZCARD', flights), limit_of(lane, most)
  local rate = rate_of(lane, per_minute)
  seen.slot = rate and 1 / rate or math.max(1, (lane.latency or 50) / limit)
  if flying >= math.floor(limit) then hold(now + math.ceil(seen.slot), 'busy') end
  if rate and (lane.tat or 0) - SPREAD > now then
    hold(lane.tat - SPREAD, 'busy')
    lane.held_at = now
  end
  local flown = flown_in(flights)
  hold(quota_ready(lane, 'requests', 1, flown, now), 'busy')
  hold(quota_ready(lane, 'tokens', tokens, flown, now), 'busy')
  seen.rate, seen.flying = rate, flying
  return seen
end

local function grant(seen)
  local lane, is_probe = seen.lane, 0
  lane.seq = (lane.seq or 0) + 1
  local ticket = ticket_of(nonce, lane.seq, tokens, seen.flying + 1)
  redis.call('ZADD', seen.flights, now + life, ticket)
  redis.call('PEXPIRE', seen.flights, 2 * life)
  for _, state in ipairs({lane, seen.key}) do
    if state.open_until then state.probe, state.probe_in, is_probe = ticket, seen.flights, 1 end
  end
  if seen.rate then lane.tat = math.max(now, lane.tat or 0) + seen.slot end
  quota_spend(lane, 'requests', 1, now)
  quota_spend(lane, 'tokens', tokens, now)
  count_served(lane, now)
  save(lane)
  save(seen.key)
  return {seen.n, ticket, is_probe}
end

-- Those who must wait are told moments one after the other, so that they do not all come back for the same slot.
-- It is no claim: whoever asks when the lane is free gets it.
local function place_in_line(seen)
  local lane = seen.lane
  local at = math.max(seen.ready, (lane.line_end or 0) + seen.slot)
  if at > seen.ready + LONGEST_LINE then at = seen.ready end
  lane.line_end = at
  return at
end

local best
for n = 1, #KEYS / 4 do
  local seen = survey(n)
  if seen.ready <= now then return grant(seen) end
  if not best or seen.ready < best.ready then
    if best then save(best.lane) end
    best = seen
  else
    save(seen.lane)
  end
end
local at = place_in_line(best)
save(best.lane)
return {0, math.max(1, math.ceil(at - now)), best.reason}
