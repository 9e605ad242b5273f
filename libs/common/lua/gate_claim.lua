-- Say who settles a closed partition again, so that two workers do not both do it. Only saves work: nothing rests on it.
-- KEYS  1 claim
-- ARGV  1 who   2 for how long, milliseconds; 0 gives it back
-- Reply 'MINE' | 'OTHER' (somebody else's; nothing changed)
-- Example: EVALSHA <sha> 1 {p07}claim 4f1c… 10000  →  'MINE'
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 'OTHER' end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 'MINE'
