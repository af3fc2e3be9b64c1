-- name: read
-- The parts of the ledger that touch the range [$3, $4); before a listing there are bars of no timeframe. Each range is
-- 16 bytes, its start and its end: a driver takes them all as one value.
SELECT state, (SELECT string_agg(int8send((date_part('epoch', lower(r)) * 1000)::bigint)
                                 || int8send((date_part('epoch', upper(r)) * 1000)::bigint), ''::bytea ORDER BY r)
               FROM unnest(ranges * tstzmultirange(tstzrange($3, $4))) AS r) AS ranges
FROM coverage WHERE series_id = $1 AND (timeframe = $2 OR (state = 'not_listed' AND timeframe = '1m'));

-- name: read_checks
-- The stretches that touch [$3, $4]. They are disjoint: no more than one that begins before can reach as far.
SELECT starts, ends, answered, attempts, first_checked_at, checked_at, error, recheck_at
FROM coverage_checks
WHERE series_id = $1 AND timeframe = $2 AND starts <= $4 AND ends >= $3
  AND starts >= coalesce((SELECT max(starts) FROM coverage_checks
                          WHERE series_id = $1 AND timeframe = $2 AND starts < $3), '-infinity')
ORDER BY starts;

-- name: add
INSERT INTO coverage (series_id, timeframe, state, ranges)
SELECT $1, $2, $3, range_agg(tstzrange(starts, ends))
FROM unnest($4::timestamptz[], $5::timestamptz[]) AS t (starts, ends)
ON CONFLICT (series_id, timeframe, state) DO UPDATE SET ranges = coverage.ranges + excluded.ranges;

-- name: touches_known
-- Whether any timeframe's answered buckets overlap [$2, $3).
SELECT EXISTS (
    SELECT 1 FROM coverage WHERE series_id = $1 AND state = 'answered' AND ranges && tstzrange($2, $3)
);

-- name: drop_checks
DELETE FROM coverage_checks WHERE series_id = $1 AND timeframe = $2 AND starts = ANY ($3::timestamptz[]);

-- name: put_checks
INSERT INTO coverage_checks
    (series_id, timeframe, starts, ends, answered, attempts, first_checked_at, checked_at, error,
     recheck_at)
SELECT $1, $2, * FROM unnest($3::timestamptz[], $4::timestamptz[], $5::boolean[], $6::integer[],
                             $7::timestamptz[], $8::timestamptz[], $9::text[], $10::timestamptz[]);
