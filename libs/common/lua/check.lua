--!include limits caller
-- Decide whether a request to a path that costs nothing may pass, and take it from the buckets of such requests.
-- KEYS  1 account   2 key   3 member       (one partition, so one slot)
-- ARGV  1 member id the caller reckons with, or ''   2 address, 32 hex digits   3 models, 'a,b'
-- Reply {'OK', models the key may use (',a,b,'), limit, remaining, reset in seconds}
--       {'REJECTED', reason, scope, detail, limit, value, needed, wait in microseconds, reset in seconds, 0}, and where it is the
--       bucket that says no, limit, remaining, reset in seconds
--       {'MEMBER', member id}    the key belongs to another member than reckoned with: ask again
-- Example: EVALSHA <sha> 3 {p07}account:acct_1 {p07}key:key_1 {p07}member: '' 00000000000000000000ffff7f000001 ''
--   →  {'OK', '', 1000, 999, 1764000001}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local member_id = ARGV[1]
local key = redis.call('HMGET', KEYS[2], 'status', 'expires_at_ms', 'addresses', 'models', 'member_id', 'limits', 'buckets')
if key[1] and (key[5] or '') ~= member_id then return {'MEMBER', key[5] or ''} end
local account = redis.call('HMGET', KEYS[1], 'status', 'limits', 'buckets')
local member = member_id ~= '' and redis.call('HMGET', KEYS[3], 'status', 'limits', 'buckets')
local reason, scope, detail = caller_trouble(key, member_id, member and member[1], account[1], ARGV[2], ARGV[3], now)
if reason then return {'REJECTED', reason, scope, detail, 0, 0, 0, 0, 0, 0} end

local scopes = {{name = 'account', hash = KEYS[1], limits = read_limits(account[2]), full = read_buckets(account[3])}}
if member then
  scopes[2] = {name = 'member', hash = KEYS[3], limits = read_limits(member[2]), full = read_buckets(member[3])}
end
scopes[#scopes + 1] = {name = 'key', hash = KEYS[2], limits = read_limits(key[6]), full = read_buckets(key[7])}
local longest
for _, one in ipairs(scopes) do
  local cap = one.limits[4]
  local wait = cap and wait_for(one.full[4], 1, cap, now) or 0
  if wait > 0 and (not longest or wait > longest.wait) then longest = {wait = wait, scope = one, cap = cap} end
end
if longest then
  local full = longest.scope.full[4]
  local reply = {'REJECTED', 'free', longest.scope.name, '', longest.cap, remaining(full, longest.cap, now), 1, longest.wait,
    math.ceil(full / 1000000), 0}
  add_window(reply, scopes, 4, now)
  return reply
end
for _, one in ipairs(scopes) do
  if one.limits[4] then
    one.full[4] = moved(one.full[4], 1, one.limits[4], now)
    redis.call('HSET', one.hash, 'buckets', write_buckets(one.full))
  end
end
local reply = {'OK', key[4] or ''}
add_window(reply, scopes, 4, now)
return reply
