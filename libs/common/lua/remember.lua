-- Take note of what an event was settled at before Redis forgot it, so that settle takes the difference. No balance changes.
-- KEYS  1 settled hash
-- ARGV  1 request id     2 version (1..255)    3 cost, nano-dollars, decimal string   4 seconds to remember the event
-- Reply {'NOTED'} | {'KNOWN', 'version:cost'}  what is remembered already stands
-- Example: EVALSHA <sha> 1 {p07}settled:495731:ba req_1 3 13887000 262800  →  {'NOTED'}
if not string.match(ARGV[2], '^%d%d?%d?$') then return redis.error_reply('ERR version out of range') end
if not string.match(ARGV[3], '^%d+$') or #ARGV[3] > 15 then return redis.error_reply('ERR cost out of range') end
local remembered = redis.call('HGET', KEYS[1], ARGV[1])
if not remembered then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ':' .. ARGV[3]) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
if remembered then return {'KNOWN', remembered} end
return {'NOTED'}
