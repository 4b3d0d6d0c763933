-- Give up the lead of a role, if it is held.
-- KEYS: role   ARGV: token
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
