-- Durable backfill jobs. PostgreSQL is the queue: any number of processes claim chunks with FOR UPDATE SKIP LOCKED.
-- All times in here are the database's own clock, so that processes with wrong clocks agree.

CREATE TABLE backfill_jobs (
    id           text PRIMARY KEY,
    market       text NOT NULL,
    provider     text NOT NULL,
    symbols      text[] NOT NULL,
    starts       timestamptz NOT NULL,
    ends         timestamptz NOT NULL,
    origin       text NOT NULL CHECK (origin IN ('operator', 'healing')),
    state        text NOT NULL DEFAULT 'queued'
                 CHECK (state IN ('queued', 'running', 'paused', 'done', 'failed', 'cancelled')),
    -- Chunks that are done or cancelled leave the table when the job is over; these count what went.
    chunks_done  integer NOT NULL DEFAULT 0,
    chunks_dropped integer NOT NULL DEFAULT 0,
    bars_written bigint NOT NULL DEFAULT 0,
    -- Symbols that could not be planned, and why.
    bad_symbols  text[] NOT NULL DEFAULT '{}',
    bad_reasons  text[] NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at   timestamptz,
    finished_at  timestamptz,
    CHECK (starts < ends)
);
CREATE INDEX backfill_jobs_by_age ON backfill_jobs (created_at DESC, id);
CREATE INDEX backfill_jobs_healing ON backfill_jobs (market, provider)
    WHERE origin = 'healing' AND state IN ('queued', 'running', 'paused');

-- A symbol of a job: after a fault of its provider it rests, longer with each fault in a row.
CREATE TABLE backfill_series (
    job_id      text NOT NULL REFERENCES backfill_jobs (id) ON DELETE CASCADE,
    series_id   integer NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    faults      integer NOT NULL DEFAULT 0,
    rests_until timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (job_id, series_id)
);

CREATE TABLE backfill_chunks (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id      text NOT NULL REFERENCES backfill_jobs (id) ON DELETE CASCADE,
    series_id   integer NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    symbol      text NOT NULL,
    -- What it is: `fetch` the minutes, or `search` for the symbol's first bar ever.
    kind        text NOT NULL DEFAULT 'fetch' CHECK (kind IN ('fetch', 'search')),
    -- Its place in the job: searches first, then the newest minutes.
    place       integer NOT NULL,
    starts      timestamptz NOT NULL,
    ends        timestamptz NOT NULL,
    state       text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts    integer NOT NULL DEFAULT 0,
    rests_until timestamptz NOT NULL DEFAULT '-infinity',
    -- Grows with each claim: whoever comes back late with an old number is refused.
    fence       bigint NOT NULL DEFAULT 0,
    owner       text,
    leased_until timestamptz,
    bars        integer NOT NULL DEFAULT 0,
    error       text,
    finished_at timestamptz,
    CHECK (starts < ends)
);
CREATE INDEX backfill_chunks_next ON backfill_chunks (job_id, series_id, place) WHERE state = 'queued';
CREATE INDEX backfill_chunks_errors ON backfill_chunks (job_id, series_id, place)
    WHERE error IS NOT NULL AND state IN ('failed', 'queued', 'running');
CREATE INDEX backfill_chunks_running ON backfill_chunks (series_id) WHERE state = 'running';
CREATE INDEX backfill_chunks_by_job ON backfill_chunks (job_id, state);

-- Processes that work on jobs, and when each was last heard of.
CREATE TABLE backfill_workers (
    id      text PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
