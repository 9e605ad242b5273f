-- The archive of record. Sort keys are made of immutable event fields only; a newer version of a row replaces an older one,
-- so every read goes through FINAL. The fsync settings are what survives a power cut (docs/reliability.md).
-- Words in braces are filled in by migrate.py: one set of files for a single node and for a replicated cluster.
CREATE TABLE IF NOT EXISTS usage {on_cluster}
(
    request_id String,
    version UInt8,
    time DateTime64(3, 'UTC'),
    account_id String,
    key_id String,
    path LowCardinality(String),
    model_asked LowCardinality(String),
    model_answered LowCardinality(String),
    stream Bool,
    status UInt16,
    outcome LowCardinality(String),
    usage String CODEC(ZSTD(1)),
    stop_reason LowCardinality(String),
    cache_ttl_1h Bool,
    declined_models Array(String),
    price_book_version LowCardinality(String),
    multiplier_ppm UInt32,
    line_models Array(LowCardinality(String)),
    line_classes Array(LowCardinality(String)),
    line_quantities Array(Int64),
    line_unit_prices_attos Array(Int64),
    line_amounts_nanos Array(Int64),
    total_nanos Int64,
    upstream_request_id String,
    attempts UInt8,
    first_byte_us UInt64,
    duration_us UInt64,
    bytes_in UInt64,
    bytes_out UInt64,
    client LowCardinality(String),
    recorded_at DateTime64(3, 'UTC') DEFAULT now64(3),
    INDEX by_request request_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_upstream_request upstream_request_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_key key_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = {replacing(version)}
PARTITION BY {partition}
ORDER BY (account_id, time, request_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480;

CREATE TABLE IF NOT EXISTS credits {on_cluster}
(
    credit_id String,
    account_id String,
    time DateTime64(3, 'UTC'),
    amount_nanos Int64,
    reason String,
    actor String,
    recorded_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {replacing}
ORDER BY (account_id, time, credit_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480;

CREATE TABLE IF NOT EXISTS control {on_cluster}
(
    sequence UInt64,
    kind LowCardinality(String),
    entity_id String,
    account_id String,
    entity String CODEC(ZSTD(1)),
    actor String,
    reason String,
    time DateTime64(3, 'UTC'),
    recorded_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {replacing}
ORDER BY (kind, entity_id, sequence)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480;
