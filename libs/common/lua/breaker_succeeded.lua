--!include breaker
-- An upstream credential has worked: its failures are forgotten and its breaker closes. One that was opened by more than failures
-- in a row stays open until its time is up: what succeeded there was sent before.
-- KEYS  1 hash of breakers
-- ARGV  1 credential id   2 generation
-- Reply {milliseconds now, breaker as it is now}, '' if it is closed and nothing counts
-- Example: EVALSHA <sha> 1 {upstreams}breakers upst_1 42  →  {1784631600000, ''}
local now, field = now_ms(), ARGV[1] .. '@' .. ARGV[2]
local text = redis.call('HGET', KEYS[1], field)
local breaker = read_breaker(text)
if state_of(breaker, now) == 'open' and RANK[breaker.kind] > 1 then return {now, text} end
redis.call('HDEL', KEYS[1], field)
return {now, ''}
