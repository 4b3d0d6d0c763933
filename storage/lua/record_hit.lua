-- Record the use of an answer that came from a cache of its own.
-- KEYS: usage stream, counter of unrecorded hits
-- ARGV: caller (JSON), most entries the usage stream may hold, answer
record_hit(KEYS[1], KEYS[2], ARGV[2], ARGV[1], ARGV[3])
