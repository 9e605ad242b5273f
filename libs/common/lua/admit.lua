-- Decide whether a message request may go upstream. Reads only; holds and limits join here (see DESIGN.md, step 4).
-- KEYS  1 account hash   2 key hash            (same partition, so same slot)
-- ARGV  none
-- Reply {'OK', multiplier_ppm, on_disconnect}
--       {'REJECTED', 'key', status}            status: the key's, or 'unknown'
--       {'REJECTED', 'account', status}
--       {'REJECTED', 'balance', available}     nano-dollars, may be negative
-- Example: EVALSHA <sha> 2 {p07}account:acct_1 {p07}key:key_1  →  {'OK', '1000000', 'drain'}
local key_status = redis.call('HGET', KEYS[2], 'status')
if key_status ~= 'active' then return {'REJECTED', 'key', key_status or 'unknown'} end
local account = redis.call('HMGET', KEYS[1], 'status', 'balance', 'held', 'multiplier_ppm', 'on_disconnect')
if account[1] ~= 'active' then return {'REJECTED', 'account', account[1] or 'unknown'} end
-- below 9e15 a Lua number holds nano-dollars exactly; it is used to compare, never to store
local available = tonumber(account[2] or '0') - tonumber(account[3] or '0')
if available <= 0 then return {'REJECTED', 'balance', string.format('%.0f', available)} end
return {'OK', account[4], account[5]}
