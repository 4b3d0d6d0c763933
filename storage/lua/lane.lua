-- Prepended to the scripts of admission: the state of a lane or a key, read once and written back where it changed.
local STATE_TTL = 7200000  -- ms; what was learned of a lane that is not used is forgotten after so long
local LONGEST_HOLD = 300000  -- ms; no pause and no open breaker lasts longer without another look

local stored = {}

local function read(name)
  local flat, state, copy = redis.call('HGETALL', name), {}, {}
  for n = 1, #flat, 2 do
    local value = tonumber(flat[n + 1]) or flat[n + 1]
    state[flat[n]], copy[flat[n]] = value, value
  end
  stored[state] = {name = name, fields = copy}
  return state
end

local function as_text(value)
  return type(value) == 'number' and string.format('%.17g', value) or value
end

local function save(state)
  local was, changed, dropped = stored[state], {}, {}
  for field, value in pairs(state) do
    if was.fields[field] ~= value then
      changed[#changed + 1] = field
      changed[#changed + 1] = as_text(value)
    end
  end
  for field in pairs(was.fields) do
    if state[field] == nil then dropped[#dropped + 1] = field end
  end
  if #dropped > 0 then redis.call('HDEL', was.name, unpack(dropped)) end
  if #changed > 0 then redis.call('HSET', was.name, unpack(changed)) end
  if #changed + #dropped > 0 then redis.call('PEXPIRE', was.name, STATE_TTL) end
end

-- How many may be in flight: learned, in 1 .. most.
local function limit_of(lane, most)
  return math.max(1, math.min(lane.limit or most, most))
end

-- A ticket says what its call was granted: its place in the lane's sequence, its tokens, and how many were in flight.
local function ticket_of(nonce, seq, tokens, flying)
  return table.concat({nonce, whole(seq), whole(tokens), whole(flying)}, ':')
end

local function granted(ticket)
  local seq, tokens, flying = string.match(ticket, ':(%d+):(%d+):(%d+)$')
  return {seq = tonumber(seq), tokens = tonumber(tokens) or 0, flying = tonumber(flying) or 1}
end

-- What is in flight, counted when it is first asked for.
local function flown_in(flights)
  local sum
  return function()
    if not sum then
      sum = {requests = 0, tokens = 0}
      for _, ticket in ipairs(redis.call('ZRANGE', flights, 0, -1)) do
        sum.requests, sum.tokens = sum.requests + 1, sum.tokens + granted(ticket).tokens
      end
    end
    return sum
  end
end
