--!include breaker
-- Take the right to try an upstream credential whose breaker is half open; one at a time.
-- KEYS  1 hash of breakers
-- ARGV  1 credential id   2 generation   3 milliseconds after which the next may try, whatever became of this one
-- Reply {1 if it may be tried, else 0; milliseconds now; breaker as it is now, '' if closed}. Repeated, it says 0: nobody tries
--       for those milliseconds.
-- Example: EVALSHA <sha> 1 {upstreams}breakers upst_1 42 30000
--   →  {1, 1784631600000, 'rate 0 0 1784631500000 1784631505000 1784631630000'}
local now, field = now_ms(), ARGV[1] .. '@' .. ARGV[2]
local text = redis.call('HGET', KEYS[1], field)
if not text then return {1, now, ''} end
local breaker = read_breaker(text)
local state = state_of(breaker, now)
if state == 'closed' then return {1, now, text} end
if state == 'open' then return {0, now, text} end
if breaker.probe > now then return {0, now, text} end
breaker.probe = now + tonumber(ARGV[3])
text = write_breaker(breaker)
redis.call('HSET', KEYS[1], field, text)
return {1, now, text}
