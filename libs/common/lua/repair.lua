-- Apply an entry that brings numbers back to what archive and log say: once, whoever brings it.
-- KEYS  1 account   2 credits taken, where its id is remembered   3 the hash it is about: the account, a key or a member
-- ARGV  1 repair id   2, 3, 4, 5 differences of balance, granted, spent and held: nano-dollars, decimal strings, may be negative
-- Reply 'APPLIED' | 'DUPLICATE' | 'MISSING' (no such account; nothing changed)
-- Example: EVALSHA <sha> 3 {p07}account:acct_1 {p07}credits:acct_1 {p07}account:acct_1 rep_1 500 0 -500 0  →  'APPLIED'
for number = 2, 5 do
  if not string.match(ARGV[number], '^%-?%d+$') or #ARGV[number] > 17 then return redis.error_reply('ERR amount out of range') end
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 'MISSING' end
if redis.call('HSETNX', KEYS[2], ARGV[1], '0') == 0 then return 'DUPLICATE' end
for number, name in ipairs({'balance', 'granted', 'spent', 'held'}) do
  if ARGV[number + 1] ~= '0' then redis.call('HINCRBY', KEYS[3], name, ARGV[number + 1]) end
end
return 'APPLIED'
