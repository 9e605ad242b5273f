-- Write the fields of an entity, unless a newer version is there already. Fields not named (balances) stay.
-- KEYS  1 entity hash
-- ARGV  1 version (stream sequence)   2.. field, value, field, value, …
--       the name of a field that starts with '?' is set only where it is absent: '?balance', '0'
-- Reply {'APPLIED'} | {'STALE', version that is there}
-- Example: EVALSHA <sha> 1 {p07}account:acct_1 42 status active ?balance 0  →  {'APPLIED'}
if not string.match(ARGV[1], '^%d+$') or #ARGV[1] > 15 or #ARGV % 2 == 0 then return redis.error_reply('ERR arguments') end
local version = redis.call('HGET', KEYS[1], 'version')
if version and tonumber(version) >= tonumber(ARGV[1]) then return {'STALE', version} end
redis.call('HSET', KEYS[1], 'version', ARGV[1])
for i = 2, #ARGV, 2 do
  local field = ARGV[i]
  if string.sub(field, 1, 1) == '?' then redis.call('HSETNX', KEYS[1], string.sub(field, 2), ARGV[i + 1])
  else redis.call('HSET', KEYS[1], field, ARGV[i + 1]) end
end
return {'APPLIED'}
