-- Look an answer up and, on a hit, record its use in the same round trip.
-- KEYS: answer, usage stream, counter of unrecorded hits
-- ARGV: caller (JSON), most entries the usage stream may hold
-- Returns the answer, or false.
local answer = redis.call('GET', KEYS[1])
if not answer then return false end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[2]) then
  redis.call('INCR', KEYS[3])
  return answer
end
local meta = string.sub(answer, 1, string.find(answer, '\n', 1, true) - 1)
redis.call('XADD', KEYS[2], '*', 'kind', 'hit', 'at', whole(clock('')), 'caller', ARGV[1], 'answer', meta)
return answer
