-- TimescaleDB: the minutes in a hypertable, the aggregates as hierarchical real-time continuous aggregates.
-- UTC buckets only, all counted from the epoch. Candlery refreshes what it touches itself (services/rollups.py), so
-- there is no refresh policy that could run beside it.

SELECT create_hypertable(
    'bars_1m', 'ts', chunk_time_interval => interval '7 days', create_default_indexes => false
);

ALTER TABLE bars_1m SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'series_id',
    timescaledb.compress_orderby = 'ts'
);

CREATE MATERIALIZED VIEW bars_5m WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT series_id,
       time_bucket('5 minutes', bars_1m.ts, origin => timestamptz '1970-01-01 00:00:00+00') AS ts,
       first(open, bars_1m.ts) AS open,
       max(high) AS high,
       min(low) AS low,
       last(close, bars_1m.ts) AS close,
       sum(volume ORDER BY bars_1m.ts) AS volume,
       count(*) AS minutes
FROM bars_1m
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW bars_15m WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT series_id,
       time_bucket('15 minutes', bars_5m.ts, origin => timestamptz '1970-01-01 00:00:00+00') AS ts,
       first(open, bars_5m.ts) AS open,
       max(high) AS high,
       min(low) AS low,
       last(close, bars_5m.ts) AS close,
       sum(volume ORDER BY bars_5m.ts) AS volume,
       sum(minutes)::bigint AS minutes
FROM bars_5m
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW bars_1h WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT series_id,
       time_bucket('1 hour', bars_15m.ts, origin => timestamptz '1970-01-01 00:00:00+00') AS ts,
       first(open, bars_15m.ts) AS open,
       max(high) AS high,
       min(low) AS low,
       last(close, bars_15m.ts) AS close,
       sum(volume ORDER BY bars_15m.ts) AS volume,
       sum(minutes)::bigint AS minutes
FROM bars_15m
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW bars_4h WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT series_id,
       time_bucket('4 hours', bars_1h.ts, origin => timestamptz '1970-01-01 00:00:00+00') AS ts,
       first(open, bars_1h.ts) AS open,
       max(high) AS high,
       min(low) AS low,
       last(close, bars_1h.ts) AS close,
       sum(volume ORDER BY bars_1h.ts) AS volume,
       sum(minutes)::bigint AS minutes
FROM bars_1h
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW bars_1d WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT series_id,
       time_bucket('1 day', bars_4h.ts, origin => timestamptz '1970-01-01 00:00:00+00') AS ts,
       first(open, bars_4h.ts) AS open,
       max(high) AS high,
       min(low) AS low,
       last(close, bars_4h.ts) AS close,
       sum(volume ORDER BY bars_4h.ts) AS volume,
       sum(minutes)::bigint AS minutes
FROM bars_4h
GROUP BY 1, 2
WITH NO DATA;
