-- A breaker as it stands in the hash of breakers: 'kind failures opens since until probe' (milliseconds; libs/common/upstreams.py
-- says what they mean). The same rules as `Breaker` there, which a test holds to this.
local RANK = {auth = 3, hold = 3, spend = 3, rate = 2, server = 1, connect = 1}

local function read_breaker(text)
  if not text then return {kind = '', failures = 0, opens = 0, since = 0, ends = 0, probe = 0, state = 'closed'} end
  local kind, failures, opens, since, ends, probe = string.match(text, '^(%l+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {kind = kind, failures = tonumber(failures), opens = tonumber(opens), since = tonumber(since), ends = tonumber(ends),
    probe = tonumber(probe)}
end

local function write_breaker(breaker)
  return string.format('%s %.0f %.0f %.0f %.0f %.0f', breaker.kind, breaker.failures, breaker.opens, breaker.since, breaker.ends,
    breaker.probe)
end

local function state_of(breaker, now)
  if breaker.ends == 0 then return 'closed' end
  return breaker.ends > now and 'open' or 'half_open'
end

-- whether the credential was changed since: what was seen of the old one says nothing of the new one
local function is_stale(credential, generation)
  return credential and string.match(credential, '^%d+') ~= generation
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
