-- Prepended to every script.
-- Time is the server's own clock, so that machines whose clocks differ agree on leases; tests pass a time instead.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number) return string.format('%d', number) end

local function key(kind, id) return 'aqr:' .. kind .. ':' .. id end

-- JSON texts in, one JSON array out. (cjson would turn an empty array into an object.)
local function json_array(texts) return '[' .. table.concat(texts, ',') .. ']' end
