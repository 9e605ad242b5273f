--!include calendar limits caller lease
-- Decide whether a message request may go upstream, and if so take all it needs in the same step. Checks everything first.
-- KEYS  1 account   2 key   3 member ('' has a name too, and is never written)   4 leases of the account
--       5 lease index of the partition   6, 7, 8 slots of account, key, member   9 gate   (one partition, so one slot)
-- ARGV  1 request id   2 entry in the lease index   3 member id the caller reckons with, or ''   4 address, 32 hex digits
--       5 models, 'a,b'   6 input tokens, estimated   7 hold at public prices, nano-dollars   8 lease, milliseconds   9 memo
-- Reply {'OK', multiplier_ppm, on_disconnect, hold, figures…}
--       {'REJECTED', reason, scope, detail, limit, value, needed, wait in microseconds, reset in seconds, multiplier_ppm, figures…}
--         (reason 'closed', before any other: this server's data was not checked against the log yet. value 1: this very
--         request was admitted before, and must be undone)
--       {'MEMBER', member id}    the key belongs to another member than reckoned with: ask again
--       {'VOID'}                 this request was given up before the call came here
--       figures: limit, remaining, reset in seconds of requests, input, output: of the scope that has least; 0 0 0 without a cap
-- Asked again with the same request id, it answers OK and takes nothing.
-- Example: EVALSHA <sha> 9 {p07}account:acct_1 {p07}key:key_1 {p07}member: {p07}leases:acct_1 {p07}leases {p07}slots:acct_1
--   {p07}slots:key_1 {p07}slots: {p07}gate req_1 'acct_1 req_1' '' 00000000000000000000ffff7f000001 claude-sonnet-4-6 12 3000 60000 '{…}'
--   →  {'OK', '1000000', 'drain', 3000, 1000, 999, 1764000001, 2000000, 1999988, 1764000001, 400000, 400000, 1764000000}
local PERIODS = {'day', 'week', 'month', 'total'}
local gate = redis.call('GET', KEYS[9])
if not gate or not string.find(redis.call('INFO', 'server'), 'run_id:' .. gate, 1, true) then -- half the time of a pattern
  return {'REJECTED', 'closed', 'account', '', 0, redis.call('HEXISTS', KEYS[4], ARGV[1]), 0, 0, 0, 0}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] -- microseconds: exact in a Lua number until the year 2255
local member_id = ARGV[3]
local key = redis.call('HMGET', KEYS[2], 'status', 'expires_at_ms', 'addresses', 'models', 'member_id', 'limits', 'buckets', 'held')
if key[1] and (key[5] or '') ~= member_id then return {'MEMBER', key[5] or ''} end
local account = redis.call('HMGET', KEYS[1], 'status', 'multiplier_ppm', 'on_disconnect', 'balance', 'limits', 'buckets', 'held')
local member = member_id ~= '' and redis.call('HMGET', KEYS[3], 'status', 'limits', 'buckets', 'held')
local reason, scope, detail = caller_trouble(key, member_id, member and member[1], account[1], ARGV[4], ARGV[5], now)
if reason and reason ~= 'model' then return {'REJECTED', reason, scope, detail, 0, 0, 0, 0, 0, 0} end

local function read_scope(name, hash, slots, limits, buckets, held)
  return {name = name, hash = hash, slots = slots, limits = read_limits(limits), full = read_buckets(buckets), held = (held or 0) + 0}
end
local scopes = {read_scope('account', KEYS[1], KEYS[6], account[5], account[6], account[7])}
if member then scopes[2] = read_scope('member', KEYS[3], KEYS[8], member[2], member[3], member[4]) end
scopes[#scopes + 1] = read_scope('key', KEYS[2], KEYS[7], key[6], key[7], key[8])

local multiplier, base, input = tonumber(account[2]), tonumber(ARGV[7]), tonumber(ARGV[6])
local hold = math.floor(base / 1000000) * multiplier + math.ceil(base % 1000000 * multiplier / 1000000)

local function figures(reply)
  for number = 1, 3 do add_window(reply, scopes, number, now) end
  return reply
end
local function rejected(why, whose, what, limit, value, needed, wait, reset)
  return figures({'REJECTED', why, whose, what, limit, value, needed, wait, reset, multiplier})
end
if reason then return rejected(reason, scope, detail, 0, 0, 0, 0, 0) end

local lease = read_lease(redis.call('HGET', KEYS[4], ARGV[1]))
if lease then
  if lease.state == 'v' then return {'VOID'} end
  return figures({'OK', account[2], account[3], tonumber(lease.hold)})
end

-- what no waiting helps against: spent budgets, then the balance
local zone, today, waiting_budget
local function rejected_budget(why, at)
  local reset = at.kind < 4 and period_end(zone, at.kind, math.max(at.index, today[at.kind])) or 0
  return rejected(why, at.scope, PERIODS[at.kind], at.budget, at.spent, hold, 0, reset)
end
for _, one in ipairs(scopes) do
  if one.limits.budgets then
    zone = zone or redis.call('HGET', KEYS[1], 'zone') or '' -- long, and seldom needed
    today = today or periods_at(zone, math.floor(now / 1000000))
    local fields = redis.call('HMGET', one.hash, 'spent', 'used')
    local used, total = read_used(fields[2]), (fields[1] or 0) + 0
    for kind, budget in ipairs(one.limits.budgets) do
      if budget then
        local index, spent = 0, total
        if kind < 4 then
          -- a later period than today's is there only after the zone was changed: what was spent still counts
          index, spent = used[kind][1], used[kind][1] >= today[kind] and used[kind][2] or 0
        end
        local is_spent = spent + hold > budget
        if is_spent or spent + one.held + hold > budget then
          local at = {scope = one.name, kind = kind, budget = budget, spent = spent, index = index}
          if is_spent then return rejected_budget('budget', at) end
          waiting_budget = waiting_budget or at
        end
      end
    end
  end
end
local balance, held = (account[4] or 0) + 0, scopes[1].held
if balance < hold then return rejected('balance', 'account', '', balance - held, held, hold, 0, 0) end

-- what passes by waiting: of all rates the one that takes longest
local reasons, needs = {'requests', 'input', 'output'}, {1, input, 1}
local longest
for _, one in ipairs(scopes) do
  for number = 1, 3 do
    local cap = one.limits[number]
    if cap then
      local wait = wait_for(one.full[number], needs[number], cap, now)
      if wait > 0 and (not longest or wait > longest.wait) then
        longest = {wait = wait, scope = one, number = number, cap = cap}
      end
    end
  end
end
if longest then
  local full = longest.scope.full[longest.number]
  return rejected(reasons[longest.number], longest.scope.name, '', longest.cap, remaining(full, longest.cap, now),
    needs[longest.number], longest.wait, math.ceil(full / 1000000))
end
for _, one in ipairs(scopes) do
  local cap = one.limits[5]
  if cap then
    local open = redis.call('ZCOUNT', one.slots, string.format('(%.0f', now), '+inf')
    if open >= cap then return rejected('in_flight', one.name, '', cap, open, 1, 0, 0) end
  end
end
if waiting_budget then return rejected_budget('budget_held', waiting_budget) end
if balance - held < hold then return rejected('balance_held', 'account', '', balance - held, held, hold, 0, 0) end

-- everything holds: now take it
local amount = string.format('%d', hold)
local ends = string.format('%d', now + ARGV[8] * 1000)
for _, one in ipairs(scopes) do
  local limited = false
  for number = 1, 2 do
    local cap = one.limits[number]
    if cap then limited, one.full[number] = true, moved(one.full[number], needs[number], cap, now) end
  end
  if limited then redis.call('HSET', one.hash, 'buckets', write_buckets(one.full)) end
  if hold > 0 then redis.call('HINCRBY', one.hash, 'held', amount) end
  redis.call('ZADD', one.slots, ends, ARGV[1])
end
redis.call('HSET', KEYS[4], ARGV[1], write_lease('o', amount, account[2], input, member_id ~= '' and member_id or '-',
  string.match(KEYS[2], '}key:(.*)$')), ARGV[1] .. ':memo', ARGV[9])
redis.call('ZADD', KEYS[5], ends, ARGV[2])
return figures({'OK', account[2], account[3], hold})
