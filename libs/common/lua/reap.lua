-- Take leases whose gateway has not renewed them. Each is left alone for a while then, so that nobody else takes it meanwhile.
-- KEYS  1 lease index of a partition
-- ARGV  1 grace, milliseconds after its end   2 how many at most   3 how long to leave it alone, milliseconds
-- Reply {entry, entry, …}: 'account request'
-- Example: EVALSHA <sha> 1 {p07}leases 1000 100 30000  →  {'acct_1 req_1'}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local entries = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[1] * 1000), 'LIMIT', 0, ARGV[2])
for _, entry in ipairs(entries) do redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3] * 1000), entry) end
return entries
