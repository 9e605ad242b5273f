-- Where a change came from and what it follows: the hash chain of an entity. A credit's kind, end, and what it is about.
ALTER TABLE control {on_cluster}
    ADD COLUMN IF NOT EXISTS address String,
    ADD COLUMN IF NOT EXISTS previous String,
    ADD COLUMN IF NOT EXISTS sha256 String,
    ADD INDEX IF NOT EXISTS by_account account_id TYPE bloom_filter(0.01) GRANULARITY 1;

ALTER TABLE credits {on_cluster}
    ADD COLUMN IF NOT EXISTS kind LowCardinality(String) DEFAULT 'credit',
    ADD COLUMN IF NOT EXISTS expires_at DateTime64(3, 'UTC'),
    ADD COLUMN IF NOT EXISTS about_id String;
