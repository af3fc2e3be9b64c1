-- name: lock_series
SELECT id FROM series ORDER BY id FOR UPDATE;

-- name: forget_coverage
UPDATE coverage SET ranges = ranges - tstzmultirange(tstzrange(NULL, $1))
WHERE timeframe = '1m' AND state <> 'not_listed';

-- name: forget_checks
DELETE FROM coverage_checks WHERE timeframe = '1m' AND ends <= $1;

-- name: clip_checks
UPDATE coverage_checks SET starts = $1 WHERE timeframe = '1m' AND starts < $1;

-- name: delete_minutes
WITH gone AS (DELETE FROM bars_1m WHERE ts < $1 RETURNING 1) SELECT count(*) FROM gone;

-- name: delete_rollup
DELETE FROM {target} WHERE ts < $1;
