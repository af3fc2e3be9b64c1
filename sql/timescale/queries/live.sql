-- name: tick
-- One sign of life of process $1, whose lease lasts $2 seconds from now on. It wants ($5) or works on ($6) the series $3,
-- whose line has the place $4 in the lines $7. It wants no others, and works on those that are still its own. What it
-- owns and does not work on is free again (the answer to a claim was lost). Nothing is written for what has not changed,
-- but for the lease.
WITH mine AS MATERIALIZED (
    -- Not by unnest(), of which a prepared plan expects so few rows that it joins them by nested loops.
    SELECT ($3::integer[])[i] AS series_id, ($7::text[])[($4::integer[])[i]] AS line,
           ($5::boolean[])[i] AS wants, ($6::boolean[])[i] AS works
    FROM generate_series(1, cardinality($3::integer[])) AS g (i)
), seen AS (
    INSERT INTO live_processes AS p (id, leased_until)
    VALUES ($1, clock_timestamp() + make_interval(secs => $2))
    ON CONFLICT (id) DO UPDATE SET leased_until = excluded.leased_until
    RETURNING id
), unwanted AS (
    -- After `seen`: whoever clears away the dead takes these rows in the same order.
    DELETE FROM live_wants w USING seen
    WHERE w.process = seen.id AND NOT EXISTS (SELECT 1 FROM mine m WHERE m.series_id = w.series_id AND m.wants)
), wanted AS (
    INSERT INTO live_wants AS w (series_id, process, line)
    SELECT m.series_id, seen.id, m.line FROM mine m CROSS JOIN seen
    WHERE m.wants AND NOT EXISTS (SELECT 1 FROM live_wants o WHERE o.series_id = m.series_id AND o.process = $1
                                  AND o.line IS NOT DISTINCT FROM m.line)
    ON CONFLICT (series_id, process) DO UPDATE SET line = excluded.line
), made AS (
    INSERT INTO live_feeds (series_id)
    SELECT m.series_id FROM mine m
    WHERE m.wants AND NOT EXISTS (SELECT 1 FROM live_feeds f WHERE f.series_id = m.series_id)
    ORDER BY m.series_id
    ON CONFLICT (series_id) DO NOTHING
), dropped AS (
    UPDATE live_feeds SET owner = NULL
    WHERE owner = $1 AND NOT EXISTS (SELECT 1 FROM mine m WHERE m.series_id = live_feeds.series_id AND m.works)
), others AS MATERIALIZED (
    SELECT id FROM live_processes WHERE id <> $1 AND leased_until > clock_timestamp()
), lines AS MATERIALIZED (
    -- Those that no other process follows, and this one does or would.
    (SELECT line FROM mine WHERE wants AND line IS NOT NULL
     UNION SELECT f.line FROM live_feeds f JOIN mine m USING (series_id)
           WHERE f.owner = $1 AND m.works AND f.line IS NOT NULL)
    EXCEPT SELECT f.line FROM live_feeds f JOIN others ON others.id = f.owner WHERE f.line IS NOT NULL
)
SELECT m.series_id, f.settled, coalesce(f.fence, 0) AS fence, coalesce(f.state, 'recovering') AS state, f.detail,
       m.works AND f.owner IS NOT DISTINCT FROM $1 AS kept,
       coalesce(f.owner IN (SELECT id FROM others), false) AS others_have,
       m.wants OR m.series_id IN (SELECT w.series_id FROM live_wants w JOIN others ON others.id = w.process) AS wanted,
       -- Whether it is this process's to claim, if free.
       m.wants AND (m.line IS NULL OR m.line IN (SELECT line FROM lines)) AS claimable,
       -- Whether there is something free that other processes want of a line of this one.
       (SELECT EXISTS (
            SELECT 1 FROM live_wants w JOIN others ON others.id = w.process JOIN lines ON lines.line = w.line
            JOIN live_feeds o ON o.series_id = w.series_id
            WHERE NOT coalesce(o.owner IN (SELECT id FROM others), false)
              AND NOT EXISTS (SELECT 1 FROM mine n WHERE n.series_id = w.series_id AND n.works AND o.owner = $1)
       )) AS others_wish,
       coalesce((SELECT max(r.id) FROM bar_revisions r
                 WHERE r.series_id = m.series_id AND r.timeframe = '1m'), 0) AS revision
FROM mine m LEFT JOIN live_feeds f USING (series_id);

-- name: claim_turn
-- Claims take turns, so that no two processes see the same line free. Who freezes in the middle of one is cut off soon.
SELECT set_config('idle_in_transaction_session_timeout', '2000', true), pg_advisory_xact_lock($1);

-- name: claim
-- What process $1, which works on $2, may follow from now on: what it wants and nobody alive follows. Of a line that no
-- other process alive follows, it takes what any process wants.
WITH others AS MATERIALIZED (
    SELECT id FROM live_processes WHERE id <> $1 AND leased_until > clock_timestamp()
), lines AS (
    (SELECT line FROM live_wants WHERE process = $1 AND line IS NOT NULL
     UNION SELECT line FROM live_feeds WHERE owner = $1 AND line IS NOT NULL)
    EXCEPT SELECT f.line FROM live_feeds f JOIN others ON others.id = f.owner WHERE f.line IS NOT NULL
), wished AS (
    SELECT series_id, line FROM live_wants
    WHERE process = $1 AND (line IS NULL OR line IN (SELECT line FROM lines))
    UNION
    SELECT w.series_id, w.line FROM live_wants w JOIN others ON others.id = w.process JOIN lines ON lines.line = w.line
), free AS (
    SELECT f.series_id, w.line FROM live_feeds f JOIN wished w USING (series_id)
    WHERE f.owner IS NULL OR (f.owner = $1 AND f.series_id <> ALL ($2::integer[]))
       OR (f.owner <> $1 AND f.owner NOT IN (SELECT id FROM others))
    ORDER BY f.series_id
    -- Whoever is about to commit with one right now keeps it until the next time.
    FOR UPDATE OF f SKIP LOCKED
)
UPDATE live_feeds f SET owner = $1, line = free.line, fence = f.fence + 1, state = 'recovering', detail = NULL
FROM free JOIN series s ON s.id = free.series_id
WHERE f.series_id = free.series_id
RETURNING f.series_id, s.market, s.provider, s.symbol, f.fence, f.settled;

-- name: forget_dead
-- Processes not heard of for long, and with them what they wanted.
DELETE FROM live_processes WHERE id IN (
    SELECT id FROM live_processes WHERE leased_until < clock_timestamp() - interval '1 minute' FOR UPDATE SKIP LOCKED
);

-- name: hold
-- The frontier of the series, if it is still this claim's; keeps it so until the transaction ends. Who freezes in the
-- middle is cut off soon, so that another can take over.
SELECT settled, set_config('idle_in_transaction_session_timeout', '4000', true)
FROM live_feeds WHERE series_id = $1 AND fence = $2 AND owner = $3 FOR UPDATE;

-- name: begin
UPDATE live_feeds SET began = $2, settled = $2 WHERE series_id = $1;

-- name: advance
-- The frontier of a series that is held moves from $2 to $3.
UPDATE live_feeds SET settled = $3 WHERE series_id = $1
RETURNING (SELECT revision FROM series WHERE id = $1) AS revision,
          (SELECT count(*) FROM bars_1m WHERE series_id = $1 AND ts >= $2 AND ts < $3) AS bars;

-- name: say
UPDATE live_feeds SET state = $4, detail = $5 WHERE series_id = $1 AND fence = $2 AND owner = $3 RETURNING true;

-- name: release
UPDATE live_feeds SET owner = NULL WHERE owner = $1 AND series_id = ANY ($2::integer[]);

-- name: release_all
UPDATE live_feeds SET owner = NULL WHERE owner = $1;

-- name: gone
DELETE FROM live_processes WHERE id = $1;

-- name: revisions
-- What was altered or inserted late in a series since the entry $2 of the log.
SELECT id, ts, new_bar FROM bar_revisions
WHERE series_id = $1 AND timeframe = '1m' AND id > $2 ORDER BY id LIMIT $3;
