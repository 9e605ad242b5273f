-- Hours by client too, in partitions of a week, so that a question about days of the whole relay reads those days: a table of its own
-- name, so that no replica that is late with this file can drop sums that were made already. The first worker that starts makes all
-- of them from the rows; the table of the release before is no more.
DROP TABLE IF EXISTS usage_hours {on_cluster} SYNC;

CREATE TABLE IF NOT EXISTS usage_by_hour {on_cluster}
(
    account_id String,
    hour DateTime('UTC'),
    key_ids Array(LowCardinality(String)),
    member_ids Array(LowCardinality(String)),
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
    computed_at DateTime64(6, 'UTC'),
    shape UInt8,
    -- what all groups come to: for questions that ask for no part of them
    all_requests UInt64 MATERIALIZED arraySum(requests),
    all_errors UInt64 MATERIALIZED arraySum(errors),
    all_rate_limited UInt64 MATERIALIZED arraySum(rate_limited),
    all_input UInt64 MATERIALIZED arraySum(input_tokens),
    all_cache_read UInt64 MATERIALIZED arraySum(cache_read_tokens),
    all_cache_write_5m UInt64 MATERIALIZED arraySum(cache_write_5m_tokens),
    all_cache_write_1h UInt64 MATERIALIZED arraySum(cache_write_1h_tokens),
    all_output UInt64 MATERIALIZED arraySum(output_tokens),
    all_cost Int128 MATERIALIZED arraySum(total_nanos),
    all_first_byte_us UInt64 MATERIALIZED arraySum(first_byte_us),
    all_first_bytes UInt64 MATERIALIZED arraySum(first_bytes)
)
ENGINE = {replacing(computed_at)}
PARTITION BY toMonday(hour)
ORDER BY (account_id, hour)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480,
    -- a week or a month that is over becomes one part: then FINAL has nothing to put together
    min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;

-- The sums of a day (UTC), without key and member: what the whole relay is looked at with. Made anew from `usage_by_hour FINAL`.
CREATE TABLE IF NOT EXISTS usage_by_day {on_cluster}
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
    computed_at DateTime64(6, 'UTC'),
    all_requests UInt64 MATERIALIZED arraySum(requests),
    all_errors UInt64 MATERIALIZED arraySum(errors),
    all_rate_limited UInt64 MATERIALIZED arraySum(rate_limited),
    all_input UInt64 MATERIALIZED arraySum(input_tokens),
    all_cache_read UInt64 MATERIALIZED arraySum(cache_read_tokens),
    all_cache_write_5m UInt64 MATERIALIZED arraySum(cache_write_5m_tokens),
    all_cache_write_1h UInt64 MATERIALIZED arraySum(cache_write_1h_tokens),
    all_output UInt64 MATERIALIZED arraySum(output_tokens),
    all_cost Int128 MATERIALIZED arraySum(total_nanos),
    all_first_byte_us UInt64 MATERIALIZED arraySum(first_byte_us),
    all_first_bytes UInt64 MATERIALIZED arraySum(first_bytes)
)
ENGINE = {replacing(computed_at)}
PARTITION BY toYYYYMM(day)
ORDER BY (account_id, day)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480,
    -- a week or a month that is over becomes one part: then FINAL has nothing to put together
    min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;
