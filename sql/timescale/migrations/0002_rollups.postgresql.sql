-- Roll-up tables of plain PostgreSQL: the same names, columns and answers as the continuous aggregates.
-- They are rebuilt over the touched buckets in the transaction that writes the minutes.

CREATE TABLE bars_5m (
    series_id integer NOT NULL,
    ts        timestamptz NOT NULL,
    open      double precision NOT NULL,
    high      double precision NOT NULL,
    low       double precision NOT NULL,
    close     double precision NOT NULL,
    volume    double precision NOT NULL,
    minutes   bigint NOT NULL,
    PRIMARY KEY (series_id, ts)
);
CREATE TABLE bars_15m (LIKE bars_5m INCLUDING ALL);
CREATE TABLE bars_1h (LIKE bars_5m INCLUDING ALL);
CREATE TABLE bars_4h (LIKE bars_5m INCLUDING ALL);
CREATE TABLE bars_1d (LIKE bars_5m INCLUDING ALL);
