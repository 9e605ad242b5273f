-- All upstream credentials and breakers, as of one moment.
-- KEYS  1 hash of credentials   2 hash of breakers
-- ARGV  none
-- Reply {milliseconds now, {id, 'version JSON', …}, {'id@generation', breaker, …}}
-- Example: EVALSHA <sha> 2 {upstreams}credentials {upstreams}breakers
--   →  {1784631600000, {'upst_1', '42 {"id":"upst_1",…}'}, {'upst_1@42', 'server 2 0 1784631599000 0 0'}}
local time = redis.call('TIME')
return {time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
