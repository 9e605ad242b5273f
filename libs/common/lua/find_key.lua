-- Which account and key a hash of a key belongs to.
-- KEYS  1 string under the SHA-256 of a key
-- ARGV  none
-- Reply 'account key', or nil if we did not issue it
-- Example: EVALSHA <sha> 1 keyhash:9f86d081884c7d65  →  'acct_1 key_1'
return redis.call('GET', KEYS[1])
