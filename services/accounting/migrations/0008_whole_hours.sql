-- What all groups of an hour or a day come to: for questions that ask for no part of them, such as the whole relay day by day.
ALTER TABLE usage_hours {on_cluster}
    ADD COLUMN IF NOT EXISTS all_requests UInt64 MATERIALIZED arraySum(requests),
    ADD COLUMN IF NOT EXISTS all_errors UInt64 MATERIALIZED arraySum(errors),
    ADD COLUMN IF NOT EXISTS all_rate_limited UInt64 MATERIALIZED arraySum(rate_limited),
    ADD COLUMN IF NOT EXISTS all_input UInt64 MATERIALIZED arraySum(input_tokens),
    ADD COLUMN IF NOT EXISTS all_cache_read UInt64 MATERIALIZED arraySum(cache_read_tokens),
    ADD COLUMN IF NOT EXISTS all_cache_write_5m UInt64 MATERIALIZED arraySum(cache_write_5m_tokens),
    ADD COLUMN IF NOT EXISTS all_cache_write_1h UInt64 MATERIALIZED arraySum(cache_write_1h_tokens),
    ADD COLUMN IF NOT EXISTS all_output UInt64 MATERIALIZED arraySum(output_tokens),
    ADD COLUMN IF NOT EXISTS all_cost Int128 MATERIALIZED arraySum(total_nanos),
    ADD COLUMN IF NOT EXISTS all_first_byte_us UInt64 MATERIALIZED arraySum(first_byte_us),
    ADD COLUMN IF NOT EXISTS all_first_bytes UInt64 MATERIALIZED arraySum(first_bytes);

ALTER TABLE usage_days {on_cluster}
    ADD COLUMN IF NOT EXISTS all_requests UInt64 MATERIALIZED arraySum(requests),
    ADD COLUMN IF NOT EXISTS all_errors UInt64 MATERIALIZED arraySum(errors),
    ADD COLUMN IF NOT EXISTS all_rate_limited UInt64 MATERIALIZED arraySum(rate_limited),
    ADD COLUMN IF NOT EXISTS all_input UInt64 MATERIALIZED arraySum(input_tokens),
    ADD COLUMN IF NOT EXISTS all_cache_read UInt64 MATERIALIZED arraySum(cache_read_tokens),
    ADD COLUMN IF NOT EXISTS all_cache_write_5m UInt64 MATERIALIZED arraySum(cache_write_5m_tokens),
    ADD COLUMN IF NOT EXISTS all_cache_write_1h UInt64 MATERIALIZED arraySum(cache_write_1h_tokens),
    ADD COLUMN IF NOT EXISTS all_output UInt64 MATERIALIZED arraySum(output_tokens),
    ADD COLUMN IF NOT EXISTS all_cost Int128 MATERIALIZED arraySum(total_nanos),
    ADD COLUMN IF NOT EXISTS all_first_byte_us UInt64 MATERIALIZED arraySum(first_byte_us),
    ADD COLUMN IF NOT EXISTS all_first_bytes UInt64 MATERIALIZED arraySum(first_bytes);
