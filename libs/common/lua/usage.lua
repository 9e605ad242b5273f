--!include calendar
-- What an account, a member and a key have spent, hold and may use, all at one instant. Changes nothing.
-- KEYS  1 account   2 key   3 member ('' has a name too)   4, 5, 6 slots of account, key, member
--       7 gate   (one partition, so one slot)
-- ARGV  1 member id the caller reckons with, or ''
-- Reply {'OK', expires_at_ms or '', models (',a,b,'), balance, granted, account, key, member}, each of the three
--         {status, limits, held, spent, requests in flight, spent this day, its end in seconds, the same of week and month};
--         {} for no member. Amounts are decimal strings of nano-dollars; `balance` has what is held in it
--       {'CLOSED'}               this server's data was not checked against the log yet
--       {'MEMBER', member id}    the key belongs to another member than reckoned with: ask again
-- Example: EVALSHA <sha> 7 {p07}account:acct_1 {p07}key:key_1 {p07}member: {p07}slots:acct_1 {p07}slots:key_1 {p07}slots:
--     {p07}gate ''
--   →  {'OK', '', '', '9000', '10000', {'active', '1000 2000000 400000 1000 50 - - - -', '0', '1000', 0, '1000', 1764028800,
--       '1000', 1764547200, '1000', 1764547200}, {'active', '', '0', '1000', 0, '1000', 1764028800, …}, {}}
local gate = redis.call('GET', KEYS[7])
if not gate or not string.find(redis.call('INFO', 'server'), 'run_id:' .. gate, 1, true) then return {'CLOSED'} end
local member_id = ARGV[1]
local key = redis.call('HMGET', KEYS[2], 'member_id', 'expires_at_ms', 'models')
if key[1] and key[1] ~= member_id then return {'MEMBER', key[1]} end
local account = redis.call('HMGET', KEYS[1], 'zone', 'balance', 'granted')
local time = redis.call('TIME')
local zone, now = account[1] or '', time[1] * 1000000 + time[2]
local today = periods_at(zone, tonumber(time[1]))

local function state(hash, slots)
  local fields = redis.call('HMGET', hash, 'status', 'limits', 'held', 'spent', 'used')
  local found = {fields[1] or '', fields[2] or '', fields[3] or '0', fields[4] or '0',
    redis.call('ZCOUNT', slots, string.format('(%.0f', now), '+inf')}
  local used = read_used(fields[5])
  for kind = 1, 3 do
    -- as admission has it: a later period than today's is there only after the zone was changed, and still counts
    local spent = used[kind][1] >= today[kind] and used[kind][2] or 0
    found[#found + 1] = string.format('%.0f', spent)
    found[#found + 1] = period_end(zone, kind, math.max(used[kind][1], today[kind]))
  end
  return found
end

return {'OK', key[2] or '', key[3] or '', account[2] or '0', account[3] or '0', state(KEYS[1], KEYS[4]), state(KEYS[2], KEYS[5]),
  member_id ~= '' and state(KEYS[3], KEYS[6]) or {}}
