-- The tables of every PostgreSQL. All instants are UTC; a bar's ts is its open time.

-- Which database this is: what is cached elsewhere carries it, so that two databases never share an entry.
CREATE TABLE database_identity (id uuid NOT NULL DEFAULT gen_random_uuid());
INSERT INTO database_identity DEFAULT VALUES;

CREATE TABLE series (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    market     text NOT NULL,
    provider   text NOT NULL,
    symbol     text NOT NULL,
    -- The exchange calendar that it keeps, as its provider said; NULL: around the clock.
    calendar   text,
    -- Grows when something already known may have changed: what is cached under an older number is unreachable.
    revision   bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (market, provider, symbol)
);

CREATE TABLE bars_1m (
    series_id integer NOT NULL,
    ts        timestamptz NOT NULL,
    open      double precision NOT NULL,
    high      double precision NOT NULL,
    low       double precision NOT NULL,
    close     double precision NOT NULL,
    volume    double precision NOT NULL,
    PRIMARY KEY (series_id, ts)
);

-- A provider's own bars of other timeframes, where the minutes are not all here.
CREATE TABLE native_bars (
    series_id integer NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    timeframe text NOT NULL,
    ts        timestamptz NOT NULL,
    open      double precision NOT NULL,
    high      double precision NOT NULL,
    low       double precision NOT NULL,
    close     double precision NOT NULL,
    volume    double precision NOT NULL,
    PRIMARY KEY (series_id, timeframe, ts)
);

-- A closed bar that was given with other values later: what stood there before.
CREATE TABLE bar_revisions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    series_id  integer NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    timeframe  text NOT NULL,
    ts         timestamptz NOT NULL,
    old_bar    double precision[] NOT NULL,
    new_bar    double precision[] NOT NULL,
    revised_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX bar_revisions_by_bar ON bar_revisions (series_id, timeframe, ts);

-- The coverage ledger. `answered`: the provider (or an imported file) accounted for these buckets.
-- `confirmed`: a bucket without a bar in here surely had no trade. `not_listed`: before the first trade ever.
CREATE TABLE coverage (
    series_id integer NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    timeframe text NOT NULL,
    state     text NOT NULL CHECK (state IN ('answered', 'confirmed', 'not_listed')),
    ranges    tstzmultirange NOT NULL,
    PRIMARY KEY (series_id, timeframe, state)
);

-- How often and when a stretch was asked for: disjoint stretches, whole fetched windows, never single bars.
CREATE TABLE coverage_checks (
    series_id        integer NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    timeframe        text NOT NULL,
    starts           timestamptz NOT NULL,
    ends             timestamptz NOT NULL,
    answered         boolean NOT NULL,
    attempts         integer NOT NULL,
    first_checked_at timestamptz NOT NULL,
    checked_at       timestamptz NOT NULL,
    error            text,
    PRIMARY KEY (series_id, timeframe, starts),
    CHECK (starts < ends)
);

-- Stretches of minutes whose aggregates are not rebuilt yet; written in the transaction that wrote the bars.
CREATE TABLE rollup_queue (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    series_id integer NOT NULL,
    starts    timestamptz NOT NULL,
    ends      timestamptz NOT NULL
);
CREATE INDEX rollup_queue_by_series ON rollup_queue (series_id, starts);

CREATE TABLE trading_calendars (
    calendar text PRIMARY KEY,
    starts   timestamptz NOT NULL,
    ends     timestamptz NOT NULL
);

CREATE TABLE trading_sessions (
    calendar        text NOT NULL REFERENCES trading_calendars (calendar) ON DELETE CASCADE,
    session_date    timestamptz NOT NULL,
    opens           timestamptz NOT NULL,
    closes          timestamptz NOT NULL,
    extended_opens  timestamptz NOT NULL,
    extended_closes timestamptz NOT NULL,
    PRIMARY KEY (calendar, session_date)
);

-- How far an import of a file came, so that it can go on after an interruption.
CREATE TABLE import_progress (
    fingerprint text NOT NULL,
    series_id   integer NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    timeframe   text NOT NULL,
    rows_done   bigint NOT NULL,
    finished    boolean NOT NULL DEFAULT false,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (fingerprint, series_id, timeframe)
);
