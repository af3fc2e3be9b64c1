-- name: missing
-- What the ledger does not know of [$3, $4), as milliseconds: {starts}, {ends}.
WITH known AS (
    SELECT coalesce(range_agg(ranges), '{}') AS ranges FROM coverage
    WHERE series_id = $1 AND ((timeframe = $2 AND state = 'answered') OR (timeframe = '1m' AND state = 'not_listed'))
), missing AS (
    SELECT unnest(tstzmultirange(tstzrange($3, $4)) - ranges) AS part FROM known
)
SELECT coalesce(array_agg((extract(epoch FROM lower(part)) * 1000)::bigint ORDER BY part), '{}') AS starts,
       coalesce(array_agg((extract(epoch FROM upper(part)) * 1000)::bigint ORDER BY part), '{}') AS ends
FROM missing;

-- name: add_job
INSERT INTO backfill_jobs (id, market, provider, symbols, starts, ends, origin, bad_symbols, bad_reasons, state,
                           finished_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text,
       CASE WHEN $10::text IN ('done', 'failed') THEN clock_timestamp() END
RETURNING id;

-- name: healing
-- Symbols of a provider that are being healed.
SELECT DISTINCT c.symbol FROM backfill_jobs j JOIN backfill_chunks c ON c.job_id = j.id
WHERE j.market = $1 AND j.provider = $2 AND j.origin = 'healing' AND j.state IN ('queued', 'running', 'paused')
  AND c.state IN ('queued', 'running');

-- name: healing_turn
-- Looks for holes take turns, so that no two processes heal the same symbol.
SELECT pg_advisory_xact_lock($1);

-- name: add_series
INSERT INTO backfill_series (job_id, series_id) SELECT $1, * FROM unnest($2::integer[]);

-- name: add_chunks
INSERT INTO backfill_chunks (job_id, series_id, symbol, kind, place, starts, ends)
SELECT $1, * FROM unnest($2::integer[], $3::text[], $4::text[], $5::integer[], $6::timestamptz[], $7::timestamptz[]);

-- name: workable
-- Jobs that have something to do now, operators' first, then the oldest.
SELECT id, market, provider FROM backfill_jobs j
WHERE state IN ('queued', 'running') AND id <> ALL ($1::text[]) AND (
    EXISTS (SELECT 1 FROM backfill_series s CROSS JOIN LATERAL (
                SELECT 1 FROM backfill_chunks c
                WHERE c.job_id = s.job_id AND c.series_id = s.series_id AND c.state = 'queued'
                  AND c.rests_until <= clock_timestamp()
                  AND NOT EXISTS (SELECT 1 FROM backfill_chunks o WHERE o.series_id = c.series_id
                                  AND o.state = 'running' AND o.starts < c.ends AND o.ends > c.starts)
                ORDER BY c.place LIMIT 1) n
            WHERE s.job_id = j.id AND s.rests_until <= clock_timestamp())
    OR NOT EXISTS (SELECT 1 FROM backfill_chunks c WHERE c.job_id = j.id AND c.state IN ('queued', 'running')))
ORDER BY origin = 'healing', created_at, id LIMIT $2;

-- name: claim_turn
-- Claims take turns, so that no two see the same stretch of a series free.
SELECT pg_advisory_xact_lock($1);

-- name: claim_job
-- The job's row comes before its chunks, as in what steers jobs: once a pause has returned, no chunk begins.
SELECT state FROM backfill_jobs WHERE id = $1 FOR NO KEY UPDATE;

-- name: claim
-- The job's first chunk that does not rest and whose stretch no other chunk is being fetched for. It is looked for symbol
-- by symbol, so that one with nothing (more) to do costs nothing.
WITH first_of_each AS (
    SELECT n.id, n.place, s.faults FROM backfill_series s CROSS JOIN LATERAL (
        SELECT c.id, c.place FROM backfill_chunks c
        WHERE c.job_id = s.job_id AND c.series_id = s.series_id AND c.state = 'queued'
          AND c.rests_until <= clock_timestamp()
          AND NOT EXISTS (SELECT 1 FROM backfill_chunks o WHERE o.series_id = c.series_id AND o.state = 'running'
                          AND o.starts < c.ends AND o.ends > c.starts)
        ORDER BY c.place LIMIT 1) n
    WHERE s.job_id = $1 AND s.rests_until <= clock_timestamp()
), candidate AS (
    SELECT c.id, f.faults FROM backfill_chunks c JOIN first_of_each f USING (id)
    WHERE c.state = 'queued' ORDER BY f.place LIMIT 1
    FOR UPDATE OF c SKIP LOCKED
)
UPDATE backfill_chunks c
SET state = 'running', fence = c.fence + 1, attempts = c.attempts + 1, owner = $2,
    leased_until = clock_timestamp() + make_interval(secs => $3)
FROM candidate WHERE c.id = candidate.id
RETURNING c.id, c.fence, c.series_id, c.symbol, c.kind, c.starts, c.ends, c.attempts, candidate.faults;

-- name: begin_job
UPDATE backfill_jobs SET state = 'running', started_at = coalesce(started_at, clock_timestamp())
WHERE id = $1;

-- name: hold
-- Whether the chunk is still this claim's; keeps it so until the transaction ends.
SELECT true FROM backfill_chunks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE;

-- name: count_bars
UPDATE backfill_chunks SET bars = bars + $2 WHERE id = $1;

-- name: finish
UPDATE backfill_chunks
SET state = 'done', bars = bars + $2, error = NULL, owner = NULL, leased_until = NULL, finished_at = clock_timestamp()
WHERE id = $1;

-- name: skip_before
-- Nothing traded before $3: the chunks that lie wholly before it have nothing to fetch.
-- They have no time of their end, and so no part in the job's pace.
UPDATE backfill_chunks SET state = 'done'
WHERE job_id = $1 AND series_id = $2 AND kind = 'fetch' AND state = 'queued' AND ends <= $3;

-- name: put_back
-- Queue the chunk again to rest for $2 seconds; an attempt that was none (NOT $4) is not counted.
UPDATE backfill_chunks
SET state = CASE (SELECT j.state FROM backfill_jobs j WHERE j.id = job_id FOR SHARE)
            WHEN 'cancelled' THEN 'cancelled' ELSE 'queued' END,
    error = coalesce($3, error), rests_until = clock_timestamp() + make_interval(secs => $2),
    attempts = attempts - CASE WHEN $4 THEN 0 ELSE 1 END, owner = NULL, leased_until = NULL
WHERE id = $1;

-- name: give_up
UPDATE backfill_chunks
SET state = 'failed', error = $2, owner = NULL, leased_until = NULL, finished_at = clock_timestamp()
WHERE id = $1;

-- name: give_up_queued
-- What is left of a symbol ($2) or of the whole job (NULL) fails for the same reason.
UPDATE backfill_chunks SET state = 'failed', error = $3, finished_at = clock_timestamp()
WHERE job_id = $1 AND state = 'queued' AND ($2::integer IS NULL OR series_id = $2);

-- name: rest_series
UPDATE backfill_series
SET faults = faults + CASE WHEN $4 THEN 1 ELSE 0 END, rests_until = clock_timestamp() + make_interval(secs => $3)
WHERE job_id = $1 AND series_id = $2;

-- name: wake_series
UPDATE backfill_series SET faults = 0, rests_until = '-infinity' WHERE job_id = $1 AND series_id = $2;

-- name: extend
UPDATE backfill_chunks SET leased_until = clock_timestamp() + make_interval(secs => $2)
WHERE owner = $1 AND state = 'running' AND id = ANY ($3::bigint[]) RETURNING id;

-- name: hand_on
-- Claims that nobody works on: of owner $1, but for the chunks $2; and those whose holder is dead, frozen or cut off.
UPDATE backfill_chunks
SET state = CASE (SELECT j.state FROM backfill_jobs j WHERE j.id = job_id FOR SHARE)
            WHEN 'cancelled' THEN 'cancelled' ELSE 'queued' END,
    owner = NULL, leased_until = NULL
WHERE id IN (
    SELECT id FROM backfill_chunks
    WHERE state = 'running' AND (leased_until < clock_timestamp() OR (owner = $1 AND id <> ALL ($2::bigint[])))
    -- Whoever is about to commit one right now keeps it.
    FOR UPDATE SKIP LOCKED
);

-- name: seen
WITH dead AS (DELETE FROM backfill_workers WHERE seen_at < clock_timestamp() - interval '1 hour')
INSERT INTO backfill_workers (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp();

-- name: gone
DELETE FROM backfill_workers WHERE id = $1;

-- name: someone_seen
SELECT EXISTS (
    SELECT 1 FROM backfill_workers WHERE seen_at > clock_timestamp() - make_interval(secs => $1) AND id <> $2
);

-- name: lock_job
SELECT state FROM backfill_jobs WHERE id = $1 FOR UPDATE;

-- name: close_job
-- Over when no chunk is open. Done chunks leave the table and are counted in the job.
WITH gone AS (
    DELETE FROM backfill_chunks WHERE job_id = $1 AND state = 'done' RETURNING bars
), went AS (
    SELECT count(*) AS chunks, coalesce(sum(bars), 0) AS bars FROM gone
)
UPDATE backfill_jobs j
SET chunks_done = j.chunks_done + went.chunks, bars_written = j.bars_written + went.bars,
    finished_at = clock_timestamp(),
    state = CASE WHEN cardinality(j.bad_symbols) > 0
                   OR EXISTS (SELECT 1 FROM backfill_chunks c WHERE c.job_id = j.id AND c.state = 'failed')
                 THEN 'failed' ELSE 'done' END
FROM went WHERE j.id = $1;

-- name: is_open
SELECT EXISTS (SELECT 1 FROM backfill_chunks WHERE job_id = $1 AND state IN ('queued', 'running'));

-- name: heals_beside
-- Whether another job heals a symbol of job $1, if that one heals, too.
SELECT EXISTS (
    SELECT 1 FROM backfill_jobs j JOIN backfill_jobs o USING (market, provider, origin)
    WHERE j.id = $1 AND j.origin = 'healing' AND o.id <> j.id AND o.symbols && j.symbols AND o.state IN ('queued', 'running', 'paused')
);

-- name: set_state
UPDATE backfill_jobs SET state = $2::text,
    finished_at = CASE WHEN $2::text = 'cancelled' THEN clock_timestamp() END
WHERE id = $1;

-- name: cancel_chunks
UPDATE backfill_chunks SET state = 'cancelled' WHERE job_id = $1 AND state = 'queued';

-- name: retry_chunks
UPDATE backfill_chunks
SET state = 'queued', attempts = 0, rests_until = '-infinity', finished_at = NULL
WHERE job_id = $1 AND state = 'failed';

-- name: wake_chunks
UPDATE backfill_chunks SET rests_until = '-infinity'
WHERE job_id = $1 AND state = 'queued' AND rests_until > clock_timestamp();

-- name: wake_all_series
UPDATE backfill_series SET faults = 0, rests_until = '-infinity' WHERE job_id = $1;

-- name: tidy_cancelled
-- What is over of cancelled jobs leaves the table and is counted in the job, once nothing is under way.
WITH tidy AS (
    SELECT j.id FROM backfill_jobs j
    WHERE j.state = 'cancelled'
      AND EXISTS (SELECT 1 FROM backfill_chunks c WHERE c.job_id = j.id AND c.state IN ('done', 'cancelled'))
      AND NOT EXISTS (SELECT 1 FROM backfill_chunks c WHERE c.job_id = j.id AND c.state = 'running')
), gone AS (
    DELETE FROM backfill_chunks c USING tidy
    WHERE c.job_id = tidy.id AND c.state IN ('done', 'cancelled') RETURNING c.job_id, c.state, c.bars
), went AS (
    SELECT job_id, count(*) FILTER (WHERE state = 'done') AS done, count(*) FILTER (WHERE state = 'cancelled') AS dropped,
           sum(bars) AS bars
    FROM gone GROUP BY job_id
)
UPDATE backfill_jobs j
SET chunks_done = j.chunks_done + went.done, chunks_dropped = j.chunks_dropped + went.dropped,
    bars_written = j.bars_written + went.bars
FROM went WHERE j.id = went.job_id;

-- name: jobs
-- The job $1, or (NULL) the newest $2, with their chunks counted.
SELECT j.*, c.total, c.done, c.failed, c.troubled, c.bars, c.recent,
       extract(epoch FROM clock_timestamp() - j.started_at)::float8 AS running_s
FROM backfill_jobs j
CROSS JOIN LATERAL (
    SELECT count(*) AS total, count(*) FILTER (WHERE state = 'done') AS done,
           count(*) FILTER (WHERE state = 'failed') AS failed, coalesce(sum(bars), 0) AS bars,
           count(*) FILTER (WHERE error IS NOT NULL AND state IN ('failed', 'queued', 'running')) AS troubled,
           count(*) FILTER (WHERE finished_at > clock_timestamp() - interval '30 seconds') AS recent
    FROM backfill_chunks WHERE job_id = j.id
) c
WHERE $1::text IS NULL OR j.id = $1
ORDER BY j.created_at DESC, j.id LIMIT $2;

-- name: errors
-- The first failed chunks of each job, and what those meet that are tried again; every symbol's first before its second.
SELECT job_id, symbol, starts, ends, attempts, error FROM (
    SELECT e.*, row_number() OVER (PARTITION BY e.job_id ORDER BY e.nth, e.place) AS at FROM backfill_series s
    CROSS JOIN LATERAL (
        SELECT *, row_number() OVER (ORDER BY place) AS nth FROM backfill_chunks
        WHERE job_id = s.job_id AND series_id = s.series_id AND state IN ('failed', 'queued', 'running')
          AND error IS NOT NULL
        ORDER BY place LIMIT $2
    ) e
    WHERE s.job_id = ANY ($1::text[])
) listed WHERE at <= $2 ORDER BY job_id, at;

-- name: chunk_counts
SELECT c.state, count(*) AS chunks FROM backfill_chunks c JOIN backfill_jobs j ON j.id = c.job_id
WHERE j.state IN ('queued', 'running', 'paused') GROUP BY c.state;

-- name: forget_jobs
-- What ended long ago, and all but the newest ten of the jobs that healed a provider.
DELETE FROM backfill_jobs WHERE id IN (
    SELECT id FROM (
        SELECT id, finished_at, origin,
               row_number() OVER (PARTITION BY origin, market, provider ORDER BY finished_at DESC, id) AS nth
        FROM backfill_jobs WHERE finished_at IS NOT NULL
    ) over_jobs
    WHERE finished_at < clock_timestamp() - interval '90 days' OR (origin = 'healing' AND nth > 10)
);
