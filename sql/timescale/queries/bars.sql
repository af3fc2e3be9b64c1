-- name: upsert_minutes
-- $1 series, $2.. columns. A bar that stands with other values goes to the revision log first. So does a new one of a
-- minute that a live follower had closed: nothing stood there.
WITH incoming AS (
    SELECT * FROM unnest($2::timestamptz[], $3::float8[], $4::float8[], $5::float8[], $6::float8[], $7::float8[])
        AS t (ts, open, high, low, close, volume)
), revised AS (
    INSERT INTO bar_revisions (series_id, timeframe, ts, old_bar, new_bar)
    SELECT $1, '1m', b.ts, ARRAY[b.open, b.high, b.low, b.close, b.volume],
           ARRAY[i.open, i.high, i.low, i.close, i.volume]
    FROM bars_1m b JOIN incoming i ON b.ts = i.ts
    WHERE b.series_id = $1 AND b.ts BETWEEN $8 AND $9
      AND (b.open, b.high, b.low, b.close, b.volume) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.volume)
    RETURNING ts
), written AS (
    INSERT INTO bars_1m (series_id, ts, open, high, low, close, volume)
    SELECT $1, ts, open, high, low, close, volume FROM incoming
    ON CONFLICT (series_id, ts) DO UPDATE
        SET open = excluded.open, high = excluded.high, low = excluded.low,
            close = excluded.close, volume = excluded.volume
        WHERE (bars_1m.open, bars_1m.high, bars_1m.low, bars_1m.close, bars_1m.volume)
            IS DISTINCT FROM (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
    RETURNING ts, open, high, low, close, volume
), late AS (
    INSERT INTO bar_revisions (series_id, timeframe, ts, old_bar, new_bar)
    SELECT $1, '1m', w.ts, '{}', ARRAY[w.open, w.high, w.low, w.close, w.volume]
    FROM live_feeds f JOIN written w ON w.ts >= f.began AND w.ts < f.settled
    WHERE f.series_id = $1 AND f.began <= $9 AND f.settled > $8 AND NOT EXISTS (SELECT 1 FROM revised r WHERE r.ts = w.ts)
)
SELECT (SELECT count(*) FROM written) AS written, (SELECT count(*) FROM revised) AS revised,
       (SELECT min(ts) FROM written) AS first_ts, (SELECT max(ts) FROM written) AS last_ts;

-- name: may_copy
-- Whether bars of [$2, $3) need no look at each: none is there, and no live follower had closed a minute of it.
SELECT NOT EXISTS (SELECT 1 FROM bars_1m WHERE series_id = $1 AND ts >= $2 AND ts < $3)
   AND NOT EXISTS (SELECT 1 FROM live_feeds WHERE series_id = $1 AND began < $3 AND settled > $2);

-- name: upsert_native
WITH incoming AS (
    SELECT * FROM unnest($2::timestamptz[], $3::float8[], $4::float8[], $5::float8[], $6::float8[], $7::float8[])
        AS t (ts, open, high, low, close, volume)
), revised AS (
    INSERT INTO bar_revisions (series_id, timeframe, ts, old_bar, new_bar)
    SELECT $1, $10, b.ts, ARRAY[b.open, b.high, b.low, b.close, b.volume],
           ARRAY[i.open, i.high, i.low, i.close, i.volume]
    FROM native_bars b JOIN incoming i ON b.ts = i.ts
    WHERE b.series_id = $1 AND b.timeframe = $10 AND b.ts BETWEEN $8 AND $9
      AND (b.open, b.high, b.low, b.close, b.volume) IS DISTINCT FROM (i.open, i.high, i.low, i.close, i.volume)
    RETURNING ts
), written AS (
    INSERT INTO native_bars AS n (series_id, timeframe, ts, open, high, low, close, volume)
    SELECT $1, $10, ts, open, high, low, close, volume FROM incoming
    ON CONFLICT (series_id, timeframe, ts) DO UPDATE
        SET open = excluded.open, high = excluded.high, low = excluded.low,
            close = excluded.close, volume = excluded.volume
        WHERE (n.open, n.high, n.low, n.close, n.volume)
            IS DISTINCT FROM (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
    RETURNING ts
)
SELECT (SELECT count(*) FROM written) AS written, (SELECT count(*) FROM revised) AS revised,
       (SELECT min(ts) FROM written) AS first_ts, (SELECT max(ts) FROM written) AS last_ts;

-- name: minutes
SELECT ts, open, high, low, close, volume FROM bars_1m
WHERE series_id = $1 AND ts >= $2 AND ts < $3

-- name: native
SELECT ts, open, high, low, close, volume FROM native_bars
WHERE series_id = $1 AND timeframe = $4 AND ts >= $2 AND ts < $3

-- name: level
-- From an aggregate of just this timeframe.
SELECT ts, open, high, low, close, volume, minutes FROM {source}
WHERE series_id = $1 AND ts >= $2 AND ts < $3

-- name: packed
-- All rows of a query as one value, 48 bytes each, ascending; see domain/packed.py. The driver then takes a string of
-- bytes, in the place of six objects a row. What else is told of them may be put in.
SELECT string_agg(int8send((date_part('epoch', ts) * 1000)::bigint) || float8send(open) || float8send(high)
                  || float8send(low) || float8send(close) || float8send(volume), ''::bytea ORDER BY ts){also}
FROM ({source}) AS bars;

-- name: packed_minutes
-- The minutes that each row stands for, four bytes each.
, string_agg(int4send(minutes::integer), ''::bytea ORDER BY ts)

-- name: fold_level
-- From a finer table; what one of its rows counts for in minutes, and the start of the bucket of ts, are put in.
SELECT {bucket} AS ts, (array_agg(open ORDER BY ts))[1] AS open, max(high) AS high, min(low) AS low,
       (array_agg(close ORDER BY ts))[count(*)::integer] AS close, sum(volume ORDER BY ts) AS volume,
       sum({minutes})::bigint AS minutes
FROM {source} WHERE series_id = $1 AND ts >= $2 AND ts < $3
GROUP BY {bucket};

-- name: runs
-- Stretches of buckets that hold a bar, 16 bytes each, of the rows of a query; the width of a bucket is put in.
WITH marked AS (
    SELECT ts, ts - (row_number() OVER (ORDER BY ts)) * ({width}::text)::interval AS run FROM ({source}) AS bars
), runs AS (
    SELECT min(ts) AS starts, max(ts) + ({width}::text)::interval AS ends FROM marked GROUP BY run
)
SELECT string_agg(int8send((date_part('epoch', starts) * 1000)::bigint)
                  || int8send((date_part('epoch', ends) * 1000)::bigint), ''::bytea ORDER BY starts) FROM runs;

-- name: next_ts
-- The first stored bar at or after $2; the minutes and a native timeframe are looked at together.
SELECT min(ts) FROM (
    SELECT min(ts) AS ts FROM bars_1m WHERE series_id = $1 AND ts >= $2
    UNION ALL
    SELECT min(ts) FROM native_bars WHERE series_id = $1 AND timeframe = $3 AND ts >= $2
) AS either;
