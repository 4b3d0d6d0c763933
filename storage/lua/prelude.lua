-- Prepended to every script.
-- Time is the server's own clock, so that machines whose clocks differ agree on leases; tests pass a time instead.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number) return string.format('%d', number) end

local function key(kind, id) return 'aqr:' .. kind .. ':' .. id end

-- Records the use of an answer. The caller gets it whatever happens here: a full stream or a full Redis is counted.
local function record_hit(usage, unrecorded, most, caller, answer)
  local meta = string.sub(answer, 1, string.find(answer, '\n', 1, true) - 1)
  local recorded = redis.call('XLEN', usage) < tonumber(most) and
    redis.pcall('XADD', usage, '*', 'kind', 'hit', 'at', whole(clock('')), 'caller', caller, 'answer', meta)
  if not recorded or type(recorded) == 'table' and recorded.err then redis.pcall('INCR', unrecorded) end
end

-- JSON texts in, one JSON array out. (cjson would turn an empty array into an object.)
local function json_array(texts) return '[' .. table.concat(texts, ',') .. ']' end
