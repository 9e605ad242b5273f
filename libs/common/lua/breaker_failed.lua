--!include breaker
-- An upstream credential has failed: count it, and open its breaker if that is enough.
-- KEYS  1 hash of credentials   2 hash of breakers
-- ARGV  1 credential id   2 generation (its version; of one that is not in the hash, any word)   3 auth, hold, spend, rate,
--       server or connect   4 of rate: milliseconds to stay away
-- Reply {milliseconds now, breaker as it is now}, 'kind failures opens since until probe'; '' if the credential was changed since.
--       Repeated, it counts twice: a credential is out one failure early.
-- Example: EVALSHA <sha> 2 {upstreams}credentials {upstreams}breakers upst_1 42 rate 5000
--   →  {1784631600000, 'rate 0 0 1784631600000 1784631605000 0'}
local DAY_MS = 86400000
local now = now_ms()
local kind, field = ARGV[3], ARGV[1] .. '@' .. ARGV[2]
if not RANK[kind] then return redis.error_reply('ERR kind') end
if is_stale(redis.call('HGET', KEYS[1], ARGV[1]), ARGV[2]) then return {now, ''} end
local text = redis.call('HGET', KEYS[2], field)
local old = read_breaker(text)
local state = state_of(old, now)
local new = {kind = kind, failures = 0, opens = 0, since = state == 'closed' and now or old.since, ends = 0, probe = 0}

if state == 'open' and RANK[kind] <= RANK[old.kind] then
  if kind ~= 'rate' or old.kind ~= 'rate' then return {now, text} end
  new.ends = math.max(old.ends, now + tonumber(ARGV[4]))
elseif RANK[kind] == 3 then
  local before = state == 'half_open' and RANK[old.kind] == 3 and old.opens or 0
  new.opens, new.ends = math.min(before + 1, 10), now + math.min(30000 * 2 ^ before, 600000)
elseif kind == 'rate' then
  new.ends = now + tonumber(ARGV[4])
elseif state == 'half_open' and RANK[old.kind] == 3 then
  new.kind, new.opens, new.ends = old.kind, old.opens, now + 5000
elseif state == 'half_open' or old.failures + 1 >= 5 then
  new.opens, new.ends = math.min(old.opens + 1, 10), now + math.min(5000 * 2 ^ old.opens, 60000)
else
  new.failures = old.failures + 1
end

if not text then  -- breakers of credentials that are no more
  local fields = redis.call('HGETALL', KEYS[2])
  for i = 1, #fields, 2 do
    local other = read_breaker(fields[i + 1])
    if math.max(other.since, other.ends) + DAY_MS < now then redis.call('HDEL', KEYS[2], fields[i]) end
  end
end
text = write_breaker(new)
redis.call('HSET', KEYS[2], field, text)
return {now, text}
