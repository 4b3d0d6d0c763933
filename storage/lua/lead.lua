-- Become or stay the one leader of a role.
-- KEYS: role   ARGV: token, ttl (ms)   Returns 1 for the leader, else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
