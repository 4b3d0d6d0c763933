-- Count a request that looks no answer up.
-- ARGV: now or '', API key's id, its requests a minute
-- Returns ms to wait where it has had its requests, else false.
return over_rate(ARGV[2], tonumber(ARGV[3]), clock(ARGV[1])) or false
