-- name: hold
-- Take or keep the lease of $2 seconds, unless another holds it.
INSERT INTO recheck_lease (holder, held_until) VALUES ($1, clock_timestamp() + make_interval(secs => $2))
ON CONFLICT (one) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until
WHERE recheck_lease.holder = excluded.holder OR recheck_lease.held_until < clock_timestamp()
RETURNING true;

-- name: release
DELETE FROM recheck_lease WHERE holder = $1;

-- name: due
-- The stretch that is due the longest, but for those series and providers that are left alone now.
SELECT c.series_id, c.timeframe, c.starts, c.ends, s.market, s.provider, s.symbol
FROM coverage_checks c JOIN series s ON s.id = c.series_id
WHERE c.recheck_at <= $1 AND c.series_id <> ALL ($2::integer[])
  AND NOT EXISTS (
      SELECT 1 FROM unnest($3::text[], $4::text[]) AS t (market, provider)
      WHERE t.market = s.market AND t.provider = s.provider
  )
ORDER BY c.recheck_at, c.series_id, c.timeframe, c.starts LIMIT 1;

-- name: lock_series
SELECT id FROM series WHERE id = $1 FOR UPDATE;

-- name: first_bars
-- The first stored bar of each timeframe that has any.
SELECT '1m' AS timeframe, min(ts) AS first_ts FROM bars_1m WHERE series_id = $1 HAVING min(ts) IS NOT NULL
UNION ALL
SELECT t.timeframe, b.first_ts FROM unnest($2::text[]) AS t (timeframe)
CROSS JOIN LATERAL (SELECT min(ts) AS first_ts FROM native_bars WHERE series_id = $1 AND timeframe = t.timeframe) AS b
WHERE b.first_ts IS NOT NULL;
