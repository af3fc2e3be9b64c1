-- name: rebuild
-- Plain PostgreSQL: rebuild the buckets of {target} that start in [$2, $3) from {source}.
INSERT INTO {target} (series_id, ts, open, high, low, close, volume, minutes)
SELECT $1, {bucket}, (array_agg(open ORDER BY ts))[1], max(high), min(low),
       (array_agg(close ORDER BY ts))[count(*)::integer], sum(volume ORDER BY ts), sum({minutes})
FROM {source} WHERE series_id = $1 AND ts >= $2 AND ts < $3
GROUP BY {bucket}
ON CONFLICT (series_id, ts) DO UPDATE
    SET open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
        volume = excluded.volume, minutes = excluded.minutes;

-- name: clear
DELETE FROM {target} WHERE series_id = $1 AND ts >= $2 AND ts < $3;

-- name: enqueue
-- A stretch that goes on where one of the same day ended joins it: a series that is followed live has one entry a day.
-- The number is a new one, so that whoever refreshes the old stretch now does not take this one off the queue.
WITH grown AS (
    UPDATE rollup_queue SET id = DEFAULT, ends = greatest(ends, $3)
    WHERE id = (
        SELECT id FROM rollup_queue
        WHERE series_id = $1 AND starts <= $2 AND starts >= date_trunc('day', $2::timestamptz, 'UTC') AND ends >= $2
        ORDER BY starts LIMIT 1
    ) RETURNING id
)
INSERT INTO rollup_queue (series_id, starts, ends) SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT 1 FROM grown);

-- name: pending_of_series
SELECT starts, ends FROM rollup_queue WHERE series_id = $1 AND starts < $3 AND ends > $2;

-- name: pending
SELECT id, series_id, starts, ends FROM rollup_queue ORDER BY id;

-- name: done
DELETE FROM rollup_queue WHERE id = ANY ($1::bigint[]);

-- name: refresh
CALL refresh_continuous_aggregate('{target}', $1::timestamptz, $2::timestamptz);

-- name: allow_decompression
SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0;

-- name: compression_job
SELECT config->>'compress_after' FROM timescaledb_information.jobs
WHERE proc_name IN ('policy_compression', 'policy_columnstore') AND hypertable_name = 'bars_1m';

-- name: stop_compression
SELECT remove_compression_policy('bars_1m', if_exists => true);

-- name: start_compression
SELECT add_compression_policy('bars_1m', compress_after => make_interval(days => $1));
