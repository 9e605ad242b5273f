-- Write an upstream credential, unless a newer version is there already. Its breaker is forgotten: what was changed is tried anew.
-- KEYS  1 hash of credentials   2 hash of breakers
-- ARGV  1 version (stream sequence)   2 credential id   3 credential as JSON; '' if it was deleted: only the version stays
-- Reply 1 if it was written, 0 if that version or a newer one is there
-- Example: EVALSHA <sha> 2 {upstreams}credentials {upstreams}breakers 42 upst_1 '{"id":"upst_1",…}'  →  1
if not string.match(ARGV[1], '^%d+$') or #ARGV[1] > 15 then return redis.error_reply('ERR version') end
local there = redis.call('HGET', KEYS[1], ARGV[2])
local version = there and string.match(there, '^%d+')
if version and tonumber(version) >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[1] .. ' ' .. ARGV[3])
if version then redis.call('HDEL', KEYS[2], ARGV[2] .. '@' .. version) end
return 1
