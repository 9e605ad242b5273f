--!include breaker
-- An upstream credential has worked: its failures are forgotten and a half-open breaker closes. One that is open stays so: what
-- succeeded there was sent before.
-- KEYS  1 hash of breakers
-- ARGV  1 credential id   2 generation
-- Reply {milliseconds now, breaker as it is now}, '' if it is closed and nothing counts
-- Example: EVALSHA <sha> 1 {upstreams}breakers upst_1 42  →  {1784631600000, ''}
local now, field = now_ms(), ARGV[1] .. '@' .. ARGV[2]
local text = redis.call('HGET', KEYS[1], field)
if text and state_of(read_breaker(text), now) == 'open' then return {now, text} end
redis.call('HDEL', KEYS[1], field)
return {now, ''}
