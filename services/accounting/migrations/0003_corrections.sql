-- What a correction corrects: a receipt shows both amounts, although the row that is replaced is gone.
ALTER TABLE usage {on_cluster}
    ADD COLUMN IF NOT EXISTS corrects_version UInt8,
    ADD COLUMN IF NOT EXISTS corrects_total_nanos Int64,
    ADD COLUMN IF NOT EXISTS correction_reason String,
    ADD COLUMN IF NOT EXISTS correction_actor String,
    ADD INDEX IF NOT EXISTS by_recorded recorded_at TYPE minmax GRANULARITY 1;
