-- Closed loop for wrk, one thread: unique questions, or some out of a pool; every answer must belong to a question
-- that waits. Arguments: file with the request (@TOKEN@ stands for the question's token), seed, size of the pool or 0
local parts, waiting, pool, seed, thread = {}, {}, 0, "", nil
-- Globals, so that done() can ask the thread for them.
asked, answered, wrong, accepted, refused, other, sample = -1, 0, 0, 0, 0, 0, ""  -- wrk asks for one only to look at it

function setup(only)
  thread = only
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local text, from = file:read("*a"), 1
  file:close()
  seed, pool = args[2], tonumber(args[3])
  while from do
    local at, till = string.find(text, "@TOKEN@", from, true)
    table.insert(parts, string.sub(text, from, at and at - 1))
    from = till and till + 1
  end
  math.randomseed(os.time())
end

function request()
  asked = asked + 1
  local number = pool > 0 and math.random(0, pool - 1) or asked + 1
  local token = string.format("%s%07d", seed, number)
  waiting[token] = (waiting[token] or 0) + 1
  return table.concat(parts, token)
end

function response(status, headers, body)
  if status == 200 then
    -- wrk does not say which connection this is: an answer nobody waits for (any more) shows, a swap of two does not.
    local token = string.match(body, seed .. "%d%d%d%d%d%d%d")
    if token and waiting[token] then
      answered = answered + 1
      waiting[token] = waiting[token] > 1 and waiting[token] - 1 or nil
    else
      wrong, sample = wrong + 1, body
    end
  elseif status == 202 then
    accepted = accepted + 1
  elseif status == 429 then
    refused = refused + 1
  else
    other, sample = other + 1, status .. " " .. body
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\n{"seconds":%f', summary.duration / 1e6))
  for _, name in ipairs({"asked", "answered", "accepted", "refused", "wrong", "other"}) do
    io.write(string.format(',"%s":%d', name, thread:get(name)))
  end
  for name, share in pairs({p50_ms = 50, p95_ms = 95, p99_ms = 99}) do
    io.write(string.format(',"%s":%f', name, latency:percentile(share) / 1e3))
  end
  io.write(string.format(',"max_ms":%f,"broken":%d,"sample":"%s"}\n', latency.max / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout,
    (string.gsub(string.sub(thread:get("sample"), 1, 300), '[%c"\\]', " "))))
end
