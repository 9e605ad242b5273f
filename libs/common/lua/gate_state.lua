-- What is known of a partition: which server this is, for which one it was opened, and how far the log was settled.
-- KEYS  1 gate   2 marks
-- ARGV  none
-- Reply {run id of this server, run id the gate was opened for or '', last usage sequence, last control sequence}
-- Example: EVALSHA <sha> 2 {p07}gate {p07}marks  →  {'9f2c…', '9f2c…', '4711', '12'}
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local marks = redis.call('HMGET', KEYS[2], 'usage', 'control')
return {run, redis.call('GET', KEYS[1]) or '', marks[1] or '0', marks[2] or '0'}
