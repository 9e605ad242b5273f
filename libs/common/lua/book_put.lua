-- Keep a published price book, once: what stands under a version is never changed.
-- KEYS  1 hash of price books
-- ARGV  1 version   2 `<effective_at_ms> <id> <JSON>`
-- Reply 'APPLIED'; 'DUPLICATE' if just that stands there; 'TAKEN' if another book does
-- Example: EVALSHA <sha> 1 pricebooks 2026-12-01 '1796083200000 book_1 {"version":"2026-12-01",…}'  →  'APPLIED'
if not string.match(ARGV[2], '^%d+ %S+ .') then return redis.error_reply('ERR book') end
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 then return 'APPLIED' end
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return 'DUPLICATE' end
return 'TAKEN'
