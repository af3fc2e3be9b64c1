-- Who follows which series live, and how far. All times of leases are the database's own clock. Nothing in here refers
-- to the rows of series: a sign of life must not wait for whoever is writing bars and holds such a row.

-- Processes that follow or want series, and until when each is held to be alive. This is the lease of all that it owns:
-- one row is written for a sign of life, however many series there are.
CREATE TABLE live_processes (
    id           text PRIMARY KEY,
    leased_until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What the clients of each process want. `line`: series that only one process may follow together, since their venue
-- allows an account one connection; NULL: each by itself.
CREATE TABLE live_wants (
    series_id integer NOT NULL,
    process   text NOT NULL REFERENCES live_processes (id) ON DELETE CASCADE,
    line      text,
    PRIMARY KEY (series_id, process)
);
CREATE INDEX live_wants_by_process ON live_wants (process);
CREATE INDEX live_wants_by_line ON live_wants (line) WHERE line IS NOT NULL;

-- Series that are or were followed. Every minute of [began, settled) was closed by a follower; what is inserted or
-- altered in there later is in the revision log.
CREATE TABLE live_feeds (
    series_id integer PRIMARY KEY,
    line      text,
    -- The process that follows it, while that one's lease lasts.
    owner     text,
    -- Grows with each claim: whoever comes back late with an old number is refused.
    fence     bigint NOT NULL DEFAULT 0,
    began     timestamptz,
    settled   timestamptz,
    state     text NOT NULL DEFAULT 'recovering' CHECK (state IN ('up', 'recovering', 'down')),
    detail    text,
    CHECK ((began IS NULL) = (settled IS NULL) AND began <= settled)
) WITH (fillfactor = 50);
CREATE INDEX live_feeds_by_owner ON live_feeds (owner) WHERE owner IS NOT NULL;

-- For those who read on in the log of a series.
CREATE INDEX bar_revisions_of_minutes ON bar_revisions (series_id, id) WHERE timeframe = '1m';
