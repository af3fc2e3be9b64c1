-- name: steady
-- All that follows in the transaction sees one state of the database. Compiling a query takes longer than these run.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- name: no_jit
SET LOCAL jit = off;

-- name: list
-- Stored series in order, of those that the filters let through, after the one of the key ($4, $5, $6).
SELECT id, market, provider, symbol, calendar FROM series
WHERE ($1::text IS NULL OR market = $1) AND ($2::text IS NULL OR provider = $2) AND ($3::text IS NULL OR symbol = $3)
  AND ($4::text IS NULL
       OR (market COLLATE "C", provider COLLATE "C", symbol COLLATE "C") > ($4::text, $5::text, $6::text))
ORDER BY market COLLATE "C", provider COLLATE "C", symbol COLLATE "C" LIMIT $7;

-- name: numbered
-- Stored series by number, after the number $1.
SELECT id, market, provider, symbol, calendar FROM series WHERE id > $1 ORDER BY id LIMIT $2;

-- name: count_series
SELECT count(*) FROM series;

-- name: first_known
-- Where each series begins: its first bar, or the first minute that was asked for and not found to lie before a listing.
SELECT s.id, least(
    (SELECT min(b.ts) FROM bars_1m b WHERE b.series_id = s.id),
    (SELECT lower(coalesce(range_agg(asked.ranges), '{}') - coalesce(
         (SELECT n.ranges FROM coverage n WHERE n.series_id = s.id AND n.timeframe = '1m' AND n.state = 'not_listed'),
         '{}'))
     FROM (SELECT c.ranges FROM coverage c
           WHERE c.series_id = s.id AND c.timeframe = '1m' AND c.state = 'answered'
           UNION ALL
           SELECT tstzmultirange(tstzrange(k.starts, k.ends)) FROM coverage_checks k
           WHERE k.series_id = s.id AND k.timeframe = '1m' AND NOT k.answered AND k.attempts > 0) AS asked)
) AS first_ts
FROM unnest($1::integer[]) AS s (id);

-- name: ledger
-- What is known of the minutes of each series, by state; `failed`: asked for in vain.
SELECT series_id, state, ranges FROM coverage WHERE series_id = ANY ($1::integer[]) AND timeframe = '1m'
UNION ALL
SELECT series_id, 'failed', range_agg(tstzrange(starts, ends)) FROM coverage_checks
WHERE series_id = ANY ($1::integer[]) AND timeframe = '1m' AND NOT answered AND attempts > 0 GROUP BY series_id;

-- name: count_bars
-- How many minutes with a bar lie in each set $1, given as stretches of a series; {minutes}: what a row counts for.
SELECT r.number, sum(found.minutes)::bigint AS bars
FROM unnest($1::integer[], $2::integer[], $3::timestamptz[], $4::timestamptz[]) AS r (number, series_id, starts, ends)
CROSS JOIN LATERAL (
    SELECT sum({minutes}) AS minutes FROM {source} b
    WHERE b.series_id = r.series_id AND b.ts >= r.starts AND b.ts < r.ends
) AS found
WHERE found.minutes IS NOT NULL GROUP BY r.number;

-- name: ends
-- The first and the last bar of each series within its range.
SELECT r.series_id,
       (SELECT b.ts FROM bars_1m b WHERE b.series_id = r.series_id AND b.ts >= r.starts AND b.ts < r.ends
        ORDER BY b.ts LIMIT 1) AS first_ts,
       (SELECT b.ts FROM bars_1m b WHERE b.series_id = r.series_id AND b.ts >= r.starts AND b.ts < r.ends
        ORDER BY b.ts DESC LIMIT 1) AS last_ts
FROM unnest($1::integer[], $2::timestamptz[], $3::timestamptz[]) AS r (series_id, starts, ends);

-- name: native
-- The timeframes $2 of which a provider's own bars are stored, and the first and the last of them.
SELECT s.id, t.timeframe, found.first_ts, found.last_ts
FROM unnest($1::integer[]) AS s (id) CROSS JOIN unnest($2::text[]) WITH ORDINALITY AS t (timeframe, place)
CROSS JOIN LATERAL (
    SELECT min(b.ts) AS first_ts, max(b.ts) AS last_ts FROM native_bars b
    WHERE b.series_id = s.id AND b.timeframe = t.timeframe
) AS found
WHERE found.first_ts IS NOT NULL ORDER BY s.id, t.place;
