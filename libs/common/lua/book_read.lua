-- The published price books that the caller does not know yet.
-- KEYS  1 hash of price books
-- ARGV  the versions he knows
-- Reply version, `<effective_at_ms> <id> <JSON>`, and so on
-- Example: EVALSHA <sha> 1 pricebooks 2026-12-01  →  {'2026-12-15', '1797292800000 book_2 {"version":"2026-12-15",…}'}
local known, found = {}, {}
for _, version in ipairs(ARGV) do known[version] = true end
for _, version in ipairs(redis.call('HKEYS', KEYS[1])) do
  if not known[version] then
    found[#found + 1] = version
    found[#found + 1] = redis.call('HGET', KEYS[1], version)
  end
end
return found
