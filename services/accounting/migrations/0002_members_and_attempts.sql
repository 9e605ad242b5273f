-- Whose key it was, and every try at the upstream: one entry each, in order.
ALTER TABLE usage {on_cluster}
    ADD COLUMN IF NOT EXISTS member_id String AFTER key_id,
    ADD COLUMN IF NOT EXISTS attempt_upstreams Array(LowCardinality(String)) AFTER attempts,
    ADD COLUMN IF NOT EXISTS attempt_statuses Array(UInt16) AFTER attempt_upstreams,
    ADD COLUMN IF NOT EXISTS attempt_errors Array(LowCardinality(String)) AFTER attempt_statuses,
    ADD COLUMN IF NOT EXISTS attempt_durations_us Array(UInt64) AFTER attempt_errors;
