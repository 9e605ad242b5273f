-- What was refused before it became a request: counts of a minute, each gateway's own. A larger count replaces a smaller one.
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
