--!include calendar lease
-- Take what requests of one account have cost from its balance, each once, and free their leases, as if one came after another.
-- A newer version settles the difference only. Everything is read before anything is changed: an error has changed nothing.
-- KEYS  1 leases of the account   2 lease index   then hash and slots of each scope: the account, and the keys and members that are
--       named; then for each event its settled hash           (one partition, so one slot)
-- ARGV  1 account id   2 seconds to remember an event   3 how many scopes   then for each event six:
--       request id   version (1..255)   cost, nano-dollars, decimal string   Unix second of the request: the day, week and month
--       whose budgets it counts for   number of its key among the scopes, 0 for none   number of its member, 0 for none
-- Reply for each event 'APPLIED'
--       | 'DUPLICATE version:cost'             what is remembered; no balance changed
--       | 'MISSING'                            no such account in Redis (lost, or not yet applied); nothing changed
-- Example: EVALSHA <sha> 7 {p07}leases:acct_1 {p07}leases {p07}account:acct_1 {p07}slots:acct_1 {p07}key:key_1 {p07}slots:key_1
--   {p07}settled:495731:ba acct_1 262800 2 req_1 3 13887000 1784631600 2 0  →  {'APPLIED'}
local EXACT = 9 * 10^15 -- whole numbers below it are exact
local call, scopes, count, reply = redis.call, {}, (#ARGV - 3) / 6, {}
local settled = 2 + 2 * tonumber(ARGV[3]) -- KEYS before the first settled hash
local requests, remembered, freed, ended = {}, {}, {}, {}

-- a sum as a list of numbers that are exact; HINCRBY adds any
local function add(sum, amount)
  local last = sum[#sum]
  if last and math.abs(last + amount) < EXACT then sum[#sum] = last + amount else sum[#sum + 1] = amount end
end

local function apply(sum, hash, field, sign)
  for _, amount in ipairs(sum) do
    if amount ~= 0 then call('HINCRBY', hash, field, string.format('%.0f', sign * amount)) end
  end
end

-- HINCRBY would refuse it, when half is done
local function is_whole(amount) return not amount or string.match(amount, '^%-?%d+$') end

for event = 1, count do
  local at = event * 6 - 3
  if not string.match(ARGV[at + 2], '^%d%d?%d?$') then return redis.error_reply('ERR version out of range') end
  if not string.match(ARGV[at + 3], '^%d+$') or #ARGV[at + 3] > 15 then return redis.error_reply('ERR cost out of range') end
  requests[event] = ARGV[at + 1]
end
local account = call('HMGET', KEYS[3], 'balance', 'zone')
if not account[1] then
  for event = 1, count do reply[event] = 'MISSING' end
  return reply
end
if not is_whole(account[1]) then return redis.error_reply('ERR the balance is no whole number') end
local zone, leases = account[2] or '', {}
for event, text in ipairs(call('HMGET', KEYS[1], unpack(requests))) do leases[requests[event]] = read_lease(text) end
for event = 1, count do remembered[requests[event]] = call('HGET', KEYS[settled + event], requests[event]) end
for number = 1, tonumber(ARGV[3]) do
  local fields = call('HMGET', KEYS[1 + 2 * number], 'used', 'last_used', 'held', 'spent')
  if not is_whole(fields[3]) or not is_whole(fields[4]) then
    return redis.error_reply('ERR held or spent is no whole number: ' .. KEYS[1 + 2 * number])
  end
  scopes[number] = {hash = KEYS[1 + 2 * number], slots = KEYS[2 + 2 * number], used = read_used(fields[1]),
    last_used = tonumber(fields[2] or '0'), held = {}, spent = {}, freed = {}}
end
local today = periods_at(zone, tonumber(call('TIME')[1]))

local function count_for(scope, change, periods)
  add(scope.spent, change)
  for kind = 1, 3 do
    local index, spent = scope.used[kind][1], scope.used[kind][2]
    if periods[kind] > index then scope.used[kind] = {periods[kind], change}
    elseif periods[kind] == index or index > today[kind] then scope.used[kind][2] = spent + change end
    -- else: a period that is over, whose budget matters to nobody any more
  end
end

for event = 1, count do
  local at, request = event * 6 - 3, requests[event]
  local version, cost, second = ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local key, mine = scopes[tonumber(ARGV[at + 5])], {scopes[1]}
  mine[#mine + 1] = key
  mine[#mine + 1] = scopes[tonumber(ARGV[at + 6])]
  -- a request that is settled holds nothing any more, whichever version it is
  local lease = leases[request]
  if lease then
    leases[request] = nil
    freed[#freed + 1], freed[#freed + 2], ended[#ended + 1] = request, request .. ':memo', ARGV[1] .. ' ' .. request
    for _, scope in ipairs(mine) do
      add(scope.held, tonumber(lease.hold))
      scope.freed[#scope.freed + 1] = request
    end
  end
  local before = remembered[request]
  local before_version, before_cost = string.match(before or '-1:0', '^(%-?%d+):(%d+)$')
  if tonumber(before_version) >= tonumber(version) then
    reply[event] = 'DUPLICATE ' .. before
  else
    local change = tonumber(cost) - tonumber(before_cost) -- both below 10^15, so exact
    if change ~= 0 then
      local periods = periods_at(zone, second)
      for _, scope in ipairs(mine) do count_for(scope, change, periods) end
    end
    if key and second > key.last_used then key.last_used, key.is_used = second, true end
    remembered[request], reply[event] = version .. ':' .. cost, 'APPLIED'
  end
end

-- from here on it changes something; first what may be of another kind, since it was not read
if #ended > 0 then
  for _, scope in ipairs(scopes) do
    if #scope.freed > 0 then call('ZREM', scope.slots, unpack(scope.freed)) end
  end
  call('ZREM', KEYS[2], unpack(ended))
  call('HDEL', KEYS[1], unpack(freed))
end
apply(scopes[1].spent, KEYS[3], 'balance', -1)
for _, scope in ipairs(scopes) do
  local used = scope.used
  apply(scope.held, scope.hash, 'held', -1)
  apply(scope.spent, scope.hash, 'spent', 1)
  if #scope.spent > 0 then
    call('HSET', scope.hash, 'used', string.format('%.0f %.0f %.0f %.0f %.0f %.0f', used[1][1], used[1][2], used[2][1], used[2][2],
      used[3][1], used[3][2]))
  end
  if scope.is_used then call('HSET', scope.hash, 'last_used', string.format('%.0f', scope.last_used)) end
end
for event = 1, count do
  if reply[event] == 'APPLIED' then call('HSET', KEYS[settled + event], requests[event], remembered[requests[event]]) end
  -- also of a duplicate: it was archived again just now, so it must be remembered from now on (settlement.py, step 2)
  call('EXPIRE', KEYS[settled + event], ARGV[2])
end
return reply
