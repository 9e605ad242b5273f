-- The sums of an hour, one row for each account, replaced as a whole: made anew from `usage FINAL` (rollups.py), so that they are
-- always sums of rows and never sums of deliveries. The arrays run in parallel, one entry for each key, member, model and outcome.
CREATE TABLE IF NOT EXISTS usage_hours {on_cluster}
(
    account_id String,
    hour DateTime('UTC'),
    key_ids Array(LowCardinality(String)),
    member_ids Array(LowCardinality(String)),
    models Array(LowCardinality(String)),
    outcomes Array(LowCardinality(String)),
    requests Array(UInt64),
    errors Array(UInt64),
    input_tokens Array(UInt64),
    cache_read_tokens Array(UInt64),
    cache_write_5m_tokens Array(UInt64),
    cache_write_1h_tokens Array(UInt64),
    output_tokens Array(UInt64),
    web_searches Array(UInt64),
    total_nanos Array(Int128),
    first_byte_us Array(UInt64),
    duration_us Array(UInt64),
    computed_at DateTime64(6, 'UTC')
)
ENGINE = {replacing(computed_at)}
ORDER BY (account_id, hour)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480;
