--!include limits
-- Count an attempt of an address, unless it has had too many.
-- KEYS  1 string: when its bucket will be full again, Unix microseconds
-- ARGV  1 attempts a minute
-- Reply 0 if it was counted, else milliseconds until one more would be
-- Example: EVALSHA <sha> 1 unknown:00000000000000000000ffff7f000001 30  →  0
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full, cap = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
local wait = wait_for(full, 1, cap, now)
if wait > 0 then return math.ceil(wait / 1000) end
full = moved(full, 1, cap, now)
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', string.format('%.0f', math.ceil((full - now) / 1000) + 1000))
return 0
