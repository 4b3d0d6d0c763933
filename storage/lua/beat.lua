-- Renew tickets of calls that are still in flight; one that has run out or was given back is not brought back.
-- KEYS: for each ticket the flights of its lane
-- ARGV: now or '', ticket's life (ms), tickets
local expiry = clock(ARGV[1]) + tonumber(ARGV[2])
for n = 1, #KEYS do
  redis.call('ZADD', KEYS[n], 'XX', expiry, ARGV[n + 2])
  redis.call('PEXPIRE', KEYS[n], 2 * ARGV[2])
end
