-- Hours by client too, and two sums more. A row of shape 1 was summed up before: its clients read as empty until it is made anew.
ALTER TABLE usage_hours {on_cluster}
    ADD COLUMN IF NOT EXISTS clients Array(LowCardinality(String)) DEFAULT arrayWithConstant(length(key_ids), '') AFTER outcomes,
    ADD COLUMN IF NOT EXISTS rate_limited Array(UInt64) DEFAULT arrayWithConstant(length(key_ids), 0) AFTER errors,
    ADD COLUMN IF NOT EXISTS first_bytes Array(UInt64) DEFAULT arrayWithConstant(length(key_ids), 0) AFTER first_byte_us,
    ADD COLUMN IF NOT EXISTS shape UInt8 DEFAULT 1;

-- The sums of a day (UTC), without key and member: what the whole relay is looked at with. Made anew from `usage_hours FINAL`.
CREATE TABLE IF NOT EXISTS usage_days {on_cluster}
(
    account_id String,
    day DateTime('UTC'),
    models Array(LowCardinality(String)),
    outcomes Array(LowCardinality(String)),
    clients Array(LowCardinality(String)),
    requests Array(UInt64),
    errors Array(UInt64),
    rate_limited Array(UInt64),
    input_tokens Array(UInt64),
    cache_read_tokens Array(UInt64),
    cache_write_5m_tokens Array(UInt64),
    cache_write_1h_tokens Array(UInt64),
    output_tokens Array(UInt64),
    web_searches Array(UInt64),
    total_nanos Array(Int128),
    first_byte_us Array(UInt64),
    first_bytes Array(UInt64),
    duration_us Array(UInt64),
    computed_at DateTime64(6, 'UTC')
)
ENGINE = {replacing(computed_at)}
ORDER BY (account_id, day)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480;
