-- All numbers of an account at one instant, with what its leases and its credits add up to.
-- KEYS  1 account   2 leases of the account   3 credits taken
-- ARGV  none
-- Reply {} if there is no such account, else {balance, held, spent, granted, held by leases, sum of credits,
--       key or member id, held by its leases, …}
-- Example: EVALSHA <sha> 3 {p07}account:acct_1 {p07}leases:acct_1 {p07}credits:acct_1  →  {'100', '5', '20', '120', '5', '120', 'key_1', '5'}
local account = redis.call('HMGET', KEYS[1], 'balance', 'held', 'spent', 'granted')
if not account[1] then return {} end
local held, credits, by = 0, 0, {}
local leases = redis.call('HGETALL', KEYS[2])
for at = 1, #leases, 2 do
  local hold, member, key = string.match(leases[at + 1], '^[of] (%d+) %d+ %d+ (%S+) ?(%S*)$')
  if hold and not string.find(leases[at], ':memo', 1, true) then
    held = held + tonumber(hold)
    for _, owner in ipairs({member, key}) do
      if owner ~= '-' and owner ~= '' then by[owner] = (by[owner] or 0) + tonumber(hold) end
    end
  end
end
local taken = redis.call('HVALS', KEYS[3])
for _, amount in ipairs(taken) do credits = credits + tonumber(amount) end
-- all sums stay below 2^53, as balances do
local reply = {account[1], account[2] or '0', account[3] or '0', account[4] or '0', string.format('%.0f', held),
  string.format('%.0f', credits)}
for owner, amount in pairs(by) do
  reply[#reply + 1], reply[#reply + 2] = owner, string.format('%.0f', amount)
end
return reply
