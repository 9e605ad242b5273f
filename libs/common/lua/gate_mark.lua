-- Note how far the log was settled in a partition. Only moves forward, and only while the partition is open: until what the server
-- forgot is settled again, the mark says from where.
-- KEYS  1 gate   2 marks
-- ARGV  1 usage sequence, or 0   2 control sequence, or 0
-- Reply 'OK' | 'CLOSED' (nothing changed)
-- Example: EVALSHA <sha> 2 {p07}gate {p07}marks 4711 0  →  'OK'
for number = 1, 2 do
  if not string.match(ARGV[number], '^%d+$') or #ARGV[number] > 15 then return redis.error_reply('ERR sequence out of range') end
end
if redis.call('GET', KEYS[1]) ~= string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') then return 'CLOSED' end
local marks = redis.call('HMGET', KEYS[2], 'usage', 'control')
for number, name in ipairs({'usage', 'control'}) do
  if tonumber(ARGV[number]) > tonumber(marks[number] or '0') then redis.call('HSET', KEYS[2], name, ARGV[number]) end
end
return 'OK'
