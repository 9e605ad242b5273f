--!include limits lease
-- A request has ended: give back its slots, put the buckets right, tighten the hold to the real cost. The hold itself goes when
-- its event is settled. Or, given up before it was used ('void'): as if it had never been, and it cannot be admitted any more.
-- KEYS  1 leases of the account   2 lease index   3 account   4 slots of the account   5, 6 of the key   [7, 8 of the member]
-- ARGV  1 request id   2 entry in the lease index   3 lease, milliseconds: how long its event may take
--       4 input tokens   5 output tokens   6 cost, nano-dollars, decimal string, or '' to leave the hold   7 '1' for void, else '0'
-- Reply 'OK' | 'LOST' (no such lease open; for a void it is noted so that a late admit finds it)
-- Example: EVALSHA <sha> 6 {p07}leases:acct_1 {p07}leases {p07}account:acct_1 {p07}slots:acct_1 {p07}key:key_1 {p07}slots:key_1
--   req_1 'acct_1 req_1' 60000 12 5 111000 0  →  'OK'
if not string.match(ARGV[6], '^%d*$') or #ARGV[6] > 15 then return redis.error_reply('ERR cost out of range') end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ends = string.format('%d', now + ARGV[3] * 1000)
local void = ARGV[7] == '1'
local lease = read_lease(redis.call('HGET', KEYS[1], ARGV[1]))
if not lease or lease.state ~= 'o' then
  if void and not lease then
    redis.call('HSET', KEYS[1], ARGV[1], 'v 0 0 0 -')
    redis.call('ZADD', KEYS[2], ends, ARGV[2])
  end
  return 'LOST'
end
local amounts = {void and -1 or 0, ARGV[4] - lease.input, ARGV[5] + 0}
local change = '0'
if void then change = '-' .. lease.hold
elseif ARGV[6] ~= '' then change = string.format('%d', ARGV[6] - lease.hold) end
local changes_held = change ~= '0' and change ~= '-0'
for hash = 3, #KEYS, 2 do
  local fields = redis.call('HMGET', KEYS[hash], 'limits', 'buckets')
  if fields[1] and fields[1] ~= '' then
    local limits, full, touched = read_limits(fields[1]), read_buckets(fields[2]), false
    for number = 1, 3 do
      if limits[number] and amounts[number] ~= 0 then
        touched, full[number] = true, moved(full[number], amounts[number], limits[number], now)
      end
    end
    if touched then redis.call('HSET', KEYS[hash], 'buckets', write_buckets(full)) end
  end
  if changes_held then redis.call('HINCRBY', KEYS[hash], 'held', change) end
  redis.call('ZREM', KEYS[hash + 1], ARGV[1])
end
local text = 'v 0 0 0 -'
if not void then
  local hold = ARGV[6] ~= '' and ARGV[6] or lease.hold
  text = write_lease('f', hold, lease.multiplier, tonumber(ARGV[4]), lease.member, lease.key)
end
redis.call('HSET', KEYS[1], ARGV[1], text)
if void then redis.call('HDEL', KEYS[1], ARGV[1] .. ':memo') end
redis.call('ZADD', KEYS[2], ends, ARGV[2])
return 'OK'
