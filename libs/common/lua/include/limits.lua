-- Limits and token buckets of one scope (account, member or key).
-- limits:  'rpm itpm otpm free_rpm in_flight day week month total', '-' where there is no cap, '' for none (limits.py writes it)
-- buckets: 'requests input output free': the Unix microsecond at which each bucket will be full again. The level is
--          cap x (1 - (full - now) / 60 s), so one whole number says it all, and a new cap keeps the part that is used.
local MINUTE_US = 60000000

-- {rpm, itpm, otpm, free_rpm, in_flight}: a number, or false; budgets: {day, week, month, total}, or nil if there are none
local function read_limits(packed)
  if not packed or packed == '' then return {} end
  local a, b, c, d, e, budgets = string.match(packed, '^(%S+) (%S+) (%S+) (%S+) (%S+) (.+)$')
  local limits = {a ~= '-' and a + 0, b ~= '-' and b + 0, c ~= '-' and c + 0, d ~= '-' and d + 0, e ~= '-' and e + 0}
  if budgets ~= '- - - -' then
    local f, g, h, i = string.match(budgets, '^(%S+) (%S+) (%S+) (%S+)$')
    limits.budgets = {f ~= '-' and f + 0, g ~= '-' and g + 0, h ~= '-' and h + 0, i ~= '-' and i + 0}
  end
  return limits
end

local function read_buckets(packed)
  if not packed then return {0, 0, 0, 0} end
  local a, b, c, d = string.match(packed, '^(%d+) (%d+) (%d+) (%d+)$')
  return {a + 0, b + 0, c + 0, d + 0}
end

-- '%d' of whole numbers below 2^53 is exact, and a third of the time of '%.0f'
local function write_buckets(full)
  return string.format('%d %d %d %d', full[1], full[2], full[3], full[4])
end

-- how long a bucket needs for so many
local function time_for(amount, cap) return math.ceil(amount * MINUTE_US / cap) end

-- microseconds until `amount` may be taken; more than the bucket holds may be taken when it is full, and leaves a debt
local function wait_for(full, amount, cap, now)
  return math.max(full, now) + time_for(math.min(amount, cap), cap) - now - MINUTE_US
end

-- take `amount`, or give it back where it is negative
local function moved(full, amount, cap, now)
  if amount >= 0 then return math.max(full, now) + time_for(amount, cap) end
  return math.max(full - math.floor(-amount * MINUTE_US / cap), 0)
end

local function remaining(full, cap, now)
  return math.min(cap, math.max(0, math.floor((MINUTE_US - (full - now)) * cap / MINUTE_US)))
end

-- of several scopes the bucket with the least left: appends limit, remaining and the second when it is full; 0 0 0 without a cap
local function add_window(reply, scopes, number, now)
  local limit, left, full = 0, 0, now
  for at = 1, #scopes do
    local cap = scopes[at].limits[number]
    if cap then
      local here = remaining(scopes[at].full[number], cap, now)
      if limit == 0 or here < left then limit, left, full = cap, here, scopes[at].full[number] end
    end
  end
  local at = #reply
  reply[at + 1], reply[at + 2], reply[at + 3] = limit, left, limit > 0 and math.ceil(math.max(full, now) / 1000000) or 0
end
