-- Requests that were refused, as each gateway process has counted them, minute by minute. A count that is told again replaces the
-- one before: it only grows. The row says whose key it was in that minute.
CREATE TABLE IF NOT EXISTS refusals {on_cluster}
(
    account_id String,
    minute DateTime('UTC'),
    key_id String,
    member_id String,
    reason LowCardinality(String),
    gateway_id String,
    refused UInt64,
    recorded_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {replacing(refused)}
ORDER BY (account_id, minute, key_id, reason, gateway_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480;
