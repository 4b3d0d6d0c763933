-- Prepended to the scripts of admission: what a reply's headers said is left, less what was granted since.
-- Fields of a kind ('requests' or 'tokens'), each with the kind in front: _least, the least that a reply of this window
-- said is left; _left, that less what is in flight, as of _at; _reset (ms), _limit; _span, the longest reset seen;
-- _seq, the lane's sequence when the window began; _flow, units a ms where it refills as a bucket.
local LONGEST_RESET = 3600000  -- ms
local SAME, OTHER = 0.02, 0.1  -- two measures are the same within, and far enough apart from

local function quota_left(lane, kind, now)
  local left, flow = lane[kind .. '_left'], lane[kind .. '_flow']
  if not flow then return left end
  return math.min(lane[kind .. '_limit'], left + flow * (now - lane[kind .. '_at']))
end

-- From when on a call that needs so much fits in. `flown` gives what is in flight.
local function quota_ready(lane, kind, need, flown, now)
  if not lane[kind .. '_left'] then return now end
  local limit, reset = lane[kind .. '_limit'], lane[kind .. '_reset']
  if limit then need = math.min(need, limit) end
  if reset <= now then
    if not limit then
      lane[kind .. '_left'], lane[kind .. '_least'] = nil, nil
      return now
    end
    -- A new window. What is in flight may be counted in it; what those calls' replies say is of the old one.
    lane[kind .. '_left'], lane[kind .. '_at'] = math.max(limit - flown()[kind], need), now
    lane[kind .. '_least'], lane[kind .. '_seq'] = limit, lane.seq
    lane[kind .. '_reset'] = now + lane[kind .. '_span']
    return now
  end
  local left, flow = quota_left(lane, kind, now), lane[kind .. '_flow']
  if left >= need then return now end
  return flow and math.min(reset, now + math.ceil((need - left) / flow)) or reset
end

local function quota_spend(lane, kind, need, now)
  if not lane[kind .. '_left'] then return end
  lane[kind .. '_left'], lane[kind .. '_at'] = quota_left(lane, kind, now) - need, now
end

-- Some providers (Groq) refill steadily and call "reset" the time until all is back. Then used / reset is the same in
-- every reply, however much is used; in a window that starts anew it is not. Two replies that agree are believed.
local function learn_flow(lane, kind, used, reset_in)
  if not used or used <= 0 or reset_in <= 0 then return end
  local flow, before, before_flow = used / reset_in, lane[kind .. '_used'], lane[kind .. '_pace']
  if before and math.abs(used - before) < OTHER * math.max(used, before) then return end
  local agrees = before and math.abs(flow - before_flow) <= SAME * flow
  lane[kind .. '_agreed'] = agrees and (lane[kind .. '_agreed'] or 0) + 1 or 0
  lane[kind .. '_flow'] = lane[kind .. '_agreed'] >= 2 and flow or nil
  lane[kind .. '_used'], lane[kind .. '_pace'] = used, flow
end

-- Replies overtake each other: within a window the least that one said is the truth. What is in flight may or may not be
-- counted in it, so it is taken off until its own replies are here.
local function learn_quota(lane, kind, said, flown, seq, now)
  if not said.remaining or seq <= (lane[kind .. '_seq'] or 0) then return end
  local reset_in = math.min(said.reset_in or 1000, LONGEST_RESET)
  local reset, span = now + reset_in, math.max(lane[kind .. '_span'] or 0, reset_in)
  learn_flow(lane, kind, said.limit and said.limit - said.remaining, reset_in)
  if not said.limit then lane[kind .. '_flow'] = nil end
  local least, known = said.remaining, lane[kind .. '_reset']
  local is_same_window = known and now < known and reset <= known + math.max(50, span / 20)
  if is_same_window and not lane[kind .. '_flow'] then
    least, reset = math.min(least, lane[kind .. '_least']), math.min(reset, known)
  end
  lane[kind .. '_limit'], lane[kind .. '_span'], lane[kind .. '_reset'] = said.limit, span, reset
  lane[kind .. '_least'], lane[kind .. '_left'], lane[kind .. '_at'] = least, least - flown()[kind], now
end
