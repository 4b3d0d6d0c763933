-- Prepended to the scripts of admission: a breaker, the same for a lane (failures in a row) and a key (rejected).
-- Fields: open_until; opens, how often in a row; probe, the ticket of the one try; probe_in, where it is in flight.
-- open_until in the past means half-open: the next asker is the probe.

local function is_probing(state, now)
  local expiry = state.probe and redis.call('ZSCORE', state.probe_in, state.probe)
  return expiry and tonumber(expiry) > now
end

local function trip(state, open_ms, now)
  state.opens = (state.opens or 0) + 1
  state.open_until = now + math.min(open_ms * 2 ^ (state.opens - 1), LONGEST_HOLD)
  state.probe, state.probe_in = nil, nil
end

local function close(state)
  state.open_until, state.opens, state.probe, state.probe_in, state.failures = nil, nil, nil, nil, nil
end
