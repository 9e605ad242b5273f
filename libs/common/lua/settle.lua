-- Take what a request cost from its account's balance, once. A newer version of an event settles the difference only.
-- KEYS  1 account hash   2 settled hash        (same partition, so same slot)
-- ARGV  1 request id     2 version (1..255)    3 cost, nano-dollars, decimal string   4 seconds to remember the event
-- Reply {'APPLIED', previous cost}             previous cost: '0' if the event is new
--       {'DUPLICATE', 'version:cost'}          what is remembered; no balance changed
--       {'MISSING'}                            no such account in Redis (lost, or not yet applied); nothing changed
-- Example: EVALSHA <sha> 2 {p07}account:acct_1 {p07}settled:495731:ba req_1 3 13887000 262800  →  {'APPLIED', '0'}
if not string.match(ARGV[2], '^%d%d?%d?$') then return redis.error_reply('ERR version out of range') end
if not string.match(ARGV[3], '^%d+$') or #ARGV[3] > 15 then return redis.error_reply('ERR cost out of range') end
if redis.call('HEXISTS', KEYS[1], 'balance') == 0 then return {'MISSING'} end
local previous = '0'
local remembered = redis.call('HGET', KEYS[2], ARGV[1])
if remembered then
  local version, cost = string.match(remembered, '^(%d+):(%d+)$')
  if tonumber(version) >= tonumber(ARGV[2]) then
    -- it was archived again just now, so it must be remembered from now on (settlement.py, step 2)
    redis.call('EXPIRE', KEYS[2], ARGV[4])
    return {'DUPLICATE', remembered}
  end
  previous = cost
end
if ARGV[3] ~= '0' then
  redis.call('HINCRBY', KEYS[1], 'balance', '-' .. ARGV[3])
  redis.call('HINCRBY', KEYS[1], 'spent', ARGV[3])
end
if previous ~= '0' then
  redis.call('HINCRBY', KEYS[1], 'balance', previous)
  redis.call('HINCRBY', KEYS[1], 'spent', '-' .. previous)
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ':' .. ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'APPLIED', previous}
