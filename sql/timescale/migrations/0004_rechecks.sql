-- Second looks at stretches whose emptiness is not confirmed, and first looks at what is only marked to be asked for.

-- From when on the buckets without a bar are to be asked for in the background; NULL: nothing is left to confirm.
ALTER TABLE coverage_checks ADD COLUMN recheck_at timestamptz;
UPDATE coverage_checks SET recheck_at = first_checked_at + interval '1 hour' WHERE answered;
CREATE INDEX coverage_checks_due ON coverage_checks (recheck_at) WHERE recheck_at IS NOT NULL;

-- Who takes second looks now: one process of a fleet, by the database's own clock.
CREATE TABLE recheck_lease (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    holder     text NOT NULL,
    held_until timestamptz NOT NULL
);
