-- A lease in the account's hash of leases: request id -> 'state hold multiplier input member key' (member '-' for none), and
-- request id .. ':memo' -> what the reaper is to publish.
-- state: o open, f finished (its event is on the way), v void (given up before it was used; only remembered)
local function read_lease(text)
  if not text then return nil end
  local state, hold, multiplier, input, member, key = string.match(text, '^(%l) (%d+) (%d+) (%d+) (%S+) ?(%S*)$')
  return {state = state, hold = hold, multiplier = multiplier, input = tonumber(input), member = member, key = key}
end

local function write_lease(state, hold, multiplier, input, member, key)
  return string.format('%s %s %s %.0f %s %s', state, hold, multiplier, input, member, key)
end

-- add nano-dollars (a decimal string, perhaps with '-') to what is held by a list of hashes
local function add_held(hashes, amount)
  if amount == '0' or amount == '-0' then return end
  for _, hash in ipairs(hashes) do redis.call('HINCRBY', hash, 'held', amount) end
end
