-- Count the request, look an answer up and, on a hit, record its use, in one round trip.
-- KEYS: answer, usage stream, counter of unrecorded hits
-- ARGV: now or '', caller (JSON), most entries the usage stream may hold, API key's id or '', its requests a minute or ''
-- Returns {'limited', ms to wait} | {'hit', answer} | {'miss'}.
local wait = ARGV[5] ~= '' and over_rate(ARGV[4], tonumber(ARGV[5]), clock(ARGV[1]))
if wait then return {'limited', wait} end
local answer = redis.call('GET', KEYS[1])
if not answer then return {'miss'} end
record_hit(KEYS[2], KEYS[3], ARGV[3], ARGV[2], answer)
return {'hit', answer}
