-- Take one of the slots of an upstream credential for a request, or keep the one it has. Slots that ended are free.
-- KEYS  1 sorted set: request id in flight → Unix millisecond at which its slot ends
-- ARGV  1 request id   2 lease, milliseconds   3 cap; '' keeps a slot whatever the cap, and brings back one that Redis has lost
-- Reply 1 if the request has a slot, 0 if the cap is reached
-- Example: EVALSHA <sha> 1 {upstreams}slots:upst_1 req_1 60000 100  →  1
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local cap = tonumber(ARGV[3])
if cap and not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= cap then return 0 end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
