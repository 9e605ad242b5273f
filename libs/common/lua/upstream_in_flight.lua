-- How many slots of upstream credentials are taken now.
-- KEYS  the sorted sets of slots
-- ARGV  none
-- Reply a count for each key
-- Example: EVALSHA <sha> 2 {upstreams}slots:upst_1 {upstreams}slots:upst_2  →  {3, 0}
local time = redis.call('TIME')
local now = string.format('(%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local counts = {}
for number, key in ipairs(KEYS) do counts[number] = redis.call('ZCOUNT', key, now, '+inf') end
return counts
