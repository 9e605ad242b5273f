-- Give back the slot of a request.
-- KEYS  1 sorted set of slots
-- ARGV  1 request id
-- Reply 1 if it had one, else 0
-- Example: EVALSHA <sha> 1 {upstreams}slots:upst_1 req_1  →  1
return redis.call('ZREM', KEYS[1], ARGV[1])
