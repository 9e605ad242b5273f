-- Apply an entry that brings numbers back to what archive and log say: once, whoever brings it.
-- KEYS  1 account   2 credits taken, where its id is remembered   3 the hash it is about: the account, a key or a member
-- ARGV  1 repair id   2, 3, 4 differences of granted, spent and held: nano-dollars, decimal strings, may be negative
--       5 '1' if it is about the account itself: its balance changes by granted - spent; else '0'
-- Reply 'APPLIED' | 'DUPLICATE' | 'MISSING' (no such account; nothing changed)
-- Example: EVALSHA <sha> 3 {p07}account:acct_1 {p07}credits:acct_1 {p07}account:acct_1 rep_1 0 -500 0 1  →  'APPLIED'
for number = 2, 4 do
  if not string.match(ARGV[number], '^%-?%d+$') or #ARGV[number] > 17 then return redis.error_reply('ERR amount out of range') end
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 'MISSING' end
if redis.call('HSETNX', KEYS[2], ARGV[1], '0') == 0 then return 'DUPLICATE' end
for number, name in ipairs({'granted', 'spent', 'held'}) do
  if ARGV[number + 1] ~= '0' then redis.call('HINCRBY', KEYS[3], name, ARGV[number + 1]) end
end
if ARGV[5] == '1' then
  local change = tonumber(ARGV[2]) - tonumber(ARGV[3]) -- both below 10^17 but in fact below 10^16: exact
  if change ~= 0 then redis.call('HINCRBY', KEYS[1], 'balance', string.format('%.0f', change)) end
end
return 'APPLIED'
