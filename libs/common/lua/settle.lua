--!include calendar lease
-- Take what a request cost from its account's balance, once, and free its lease. A newer version settles the difference only.
-- KEYS  1 settled hash   2 leases of the account   3 lease index   4 account   5 slots of the account   [6, 7 of the key
--       [8, 9 of the member]]                       (one partition, so one slot)
-- ARGV  1 request id     2 version (1..255)    3 cost, nano-dollars, decimal string   4 seconds to remember the event
--       5 entry in the lease index   6 Unix second of the request: the day, week and month whose budgets it counts for
-- Reply {'APPLIED', previous cost}             previous cost: '0' if the event is new
--       {'DUPLICATE', 'version:cost'}          what is remembered; no balance changed
--       {'MISSING'}                            no such account in Redis (lost, or not yet applied); nothing changed
-- Example: EVALSHA <sha> 7 {p07}settled:495731:ba {p07}leases:acct_1 {p07}leases {p07}account:acct_1 {p07}slots:acct_1
--   {p07}key:key_1 {p07}slots:key_1 req_1 3 13887000 262800 'acct_1 req_1' 1784631600  →  {'APPLIED', '0'}
if not string.match(ARGV[2], '^%d%d?%d?$') then return redis.error_reply('ERR version out of range') end
if not string.match(ARGV[3], '^%d+$') or #ARGV[3] > 15 then return redis.error_reply('ERR cost out of range') end
local account = redis.call('HMGET', KEYS[4], 'balance', 'zone')
if not account[1] then return {'MISSING'} end
local hashes = {}
for hash = 4, #KEYS, 2 do hashes[#hashes + 1] = KEYS[hash] end
-- a request that is settled holds nothing any more, whichever version it is
local lease = read_lease(redis.call('HGET', KEYS[2], ARGV[1]))
if lease then
  add_held(hashes, '-' .. lease.hold)
  redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. ':memo')
  redis.call('ZREM', KEYS[3], ARGV[5])
  for slots = 5, #KEYS, 2 do redis.call('ZREM', KEYS[slots], ARGV[1]) end
end
local previous = '0'
local remembered = redis.call('HGET', KEYS[1], ARGV[1])
if remembered then
  local version, cost = string.match(remembered, '^(%d+):(%d+)$')
  if tonumber(version) >= tonumber(ARGV[2]) then
    -- it was archived again just now, so it must be remembered from now on (settlement.py, step 2)
    redis.call('EXPIRE', KEYS[1], ARGV[4])
    return {'DUPLICATE', remembered}
  end
  previous = cost
end
local change = tonumber(ARGV[3]) - tonumber(previous) -- both below 10^15, so exact
if change ~= 0 then
  local amount = string.format('%.0f', change)
  redis.call('HINCRBY', KEYS[4], 'balance', string.format('%.0f', -change))
  local zone, second, time = account[2] or '', tonumber(ARGV[6]), redis.call('TIME')
  local then_, today = periods_at(zone, second), periods_at(zone, tonumber(time[1]))
  for _, hash in ipairs(hashes) do
    redis.call('HINCRBY', hash, 'spent', amount)
    local used = read_used(redis.call('HGET', hash, 'used'))
    for kind = 1, 3 do
      local index, spent = used[kind][1], used[kind][2]
      if then_[kind] > index then used[kind] = {then_[kind], change}
      elseif then_[kind] == index or index > today[kind] then used[kind][2] = spent + change end
      -- else: a period that is over, whose budget matters to nobody any more
    end
    redis.call('HSET', hash, 'used', string.format('%.0f %.0f %.0f %.0f %.0f %.0f', used[1][1], used[1][2], used[2][1], used[2][2],
      used[3][1], used[3][2]))
  end
end
if KEYS[6] and tonumber(ARGV[6]) > tonumber(redis.call('HGET', KEYS[6], 'last_used') or '0') then
  redis.call('HSET', KEYS[6], 'last_used', ARGV[6])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ':' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {'APPLIED', previous}
