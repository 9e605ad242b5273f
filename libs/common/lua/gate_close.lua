-- Close a partition for admission until somebody opens it who knows that its data is right.
-- KEYS  1 gate
-- ARGV  none
-- Reply 'CLOSED'
-- Example: EVALSHA <sha> 1 {p07}gate  →  'CLOSED'
redis.call('DEL', KEYS[1])
return 'CLOSED'
