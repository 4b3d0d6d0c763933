-- Look an answer up and, on a hit, record its use in the same round trip.
-- KEYS: answer, usage stream, counter of unrecorded hits
-- ARGV: caller (JSON), most entries the usage stream may hold
-- Returns the answer, or false.
local answer = redis.call('GET', KEYS[1])
if answer then record_hit(KEYS[2], KEYS[3], ARGV[2], ARGV[1], answer) end
return answer
