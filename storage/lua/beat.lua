-- Renew tickets of calls that are still in flight; one that has run out or was given back is not brought back.
-- KEYS: for each ticket the flights of its lane
-- ARGV: now or '', ticket's life (ms), tickets
local now, life = clock(ARGV[1]), tonumber(ARGV[2])
for n = 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[n], '-inf', now)
  redis.call('ZADD', KEYS[n], 'XX', now + life, ARGV[n + 2])
  redis.call('PEXPIRE', KEYS[n], 2 * life)
end
