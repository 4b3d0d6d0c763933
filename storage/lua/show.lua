-- Give a sign of life. (A script, so that a full Redis takes it too: nobody is dead because of that.)
-- KEYS: sign, names   ARGV: name, sign, ttl (ms)
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
