--!include limits lease
-- A request is still under way: its lease lives on. With what `message_start` said, its true input takes the estimate's place.
-- KEYS  1 leases of the account   2 lease index   3 account   4 slots of the account   5, 6 of the key   [7, 8 of the member]
-- ARGV  1 request id   2 entry in the lease index   3 lease, milliseconds   4 input tokens, or '' for no news   5 '1' if it
--       still has its slots; '0' gives them back (the caller has left, the upstream is read to its end)
-- Reply 'OK' | 'LOST' (no such lease open: Redis lost it, or it was held for dead; nothing changed)
-- Example: EVALSHA <sha> 6 {p07}leases:acct_1 {p07}leases {p07}account:acct_1 {p07}slots:acct_1 {p07}key:key_1 {p07}slots:key_1
--   req_1 'acct_1 req_1' 60000 '' 1  →  'OK'
local lease = read_lease(redis.call('HGET', KEYS[1], ARGV[1]))
if not lease or lease.state ~= 'o' then return 'LOST' end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ends = string.format('%d', now + ARGV[3] * 1000)
local input = tonumber(ARGV[4])
if input and input ~= lease.input then
  for hash = 3, #KEYS, 2 do
    local fields = redis.call('HMGET', KEYS[hash], 'limits', 'buckets')
    local cap = read_limits(fields[1])[2]
    if cap then
      local full = read_buckets(fields[2])
      full[2] = moved(full[2], input - lease.input, cap, now)
      redis.call('HSET', KEYS[hash], 'buckets', write_buckets(full))
    end
  end
  redis.call('HSET', KEYS[1], ARGV[1], write_lease('o', lease.hold, lease.multiplier, input, lease.member, lease.key))
end
redis.call('ZADD', KEYS[2], ends, ARGV[2])
for slots = 4, #KEYS, 2 do
  if ARGV[5] == '1' then redis.call('ZADD', KEYS[slots], ends, ARGV[1]) else redis.call('ZREM', KEYS[slots], ARGV[1]) end
end
return 'OK'
