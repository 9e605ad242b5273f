-- Add a credit (or a negative adjustment) to an account's balance, once per credit id.
-- KEYS  1 account hash   2 credits-taken hash  (same partition, so same slot)
-- ARGV  1 credit id      2 amount, nano-dollars, decimal string, may be negative      3 largest balance allowed, either side of 0
-- Reply {'APPLIED'} | {'DUPLICATE'} | {'MISSING'} (no such account) | {'OVER', balance} (beyond ±the limit); only APPLIED changes
-- Example: EVALSHA <sha> 2 {p07}account:acct_1 {p07}credits:acct_1 cred_1 10000000000 9000000000000000  →  {'APPLIED'}
if not string.match(ARGV[2], '^%-?%d+$') or #ARGV[2] > 17 then return redis.error_reply('ERR amount out of range') end
local balance = redis.call('HGET', KEYS[1], 'balance')
if not balance then return {'MISSING'} end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return {'DUPLICATE'} end
-- a balance's limit is below 2^53, so the comparison is exact where it says yes; a rebuild's is far beyond, and need not be
local sum, limit = tonumber(balance) + tonumber(ARGV[2]), tonumber(ARGV[3])
if sum > limit or sum < -limit then return {'OVER', balance} end
redis.call('HINCRBY', KEYS[1], 'balance', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'granted', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return {'APPLIED'}
