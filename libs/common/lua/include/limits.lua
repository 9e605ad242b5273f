-- Limits and token buckets of one scope (account, member or key).
-- limits:  'rpm itpm otpm free_rpm in_flight day week month total', '-' where there is no cap, '' for none (limits.py writes it)
-- buckets: 'requests input output free': the Unix microsecond at which each bucket will be full again. The level is
--          cap x (1 - (full - now) / 60 s), so one whole number says it all, and a new cap keeps the part that is used.
local MINUTE_US = 60000000

local function read_limits(packed)
  if not packed or packed == '' then return {} end
  local a, b, c, d, e, f, g, h, i = string.match(packed, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
  return {tonumber(a) or false, tonumber(b) or false, tonumber(c) or false, tonumber(d) or false, tonumber(e) or false,
    tonumber(f) or false, tonumber(g) or false, tonumber(h) or false, tonumber(i) or false}
end

local function read_buckets(packed)
  if not packed then return {0, 0, 0, 0} end
  local a, b, c, d = string.match(packed, '^(%d+) (%d+) (%d+) (%d+)$')
  return {tonumber(a), tonumber(b), tonumber(c), tonumber(d)}
end

local function write_buckets(full)
  return string.format('%.0f %.0f %.0f %.0f', full[1], full[2], full[3], full[4])
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
  local limit, left, reset = 0, 0, 0
  for _, scope in ipairs(scopes) do
    local cap = scope.limits[number]
    if cap then
      local here = remaining(scope.full[number], cap, now)
      if limit == 0 or here < left then
        limit, left, reset = cap, here, math.ceil(math.max(scope.full[number], now) / 1000000)
      end
    end
  end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = limit, left, reset
end
