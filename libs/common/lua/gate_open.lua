-- Open a partition for admission, if the server is still the one whose data was checked, and nobody touched the gate meanwhile.
-- KEYS  1 gate
-- ARGV  1 run id of the server that was checked   2 run id the gate was opened for when that began, or '' for no gate
-- Reply 'OPEN' | 'CHANGED' (restarted, failed over, emptied or closed meanwhile: check again)
-- Example: EVALSHA <sha> 1 {p07}gate 9f2c… 51aa…  →  'OPEN'
local run, gate = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)'), redis.call('GET', KEYS[1]) or ''
if run ~= ARGV[1] or (gate ~= ARGV[2] and gate ~= run) then return 'CHANGED' end
redis.call('SET', KEYS[1], run)
return 'OPEN'
