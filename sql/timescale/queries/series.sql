-- name: find
SELECT id, revision, calendar FROM series WHERE market = $1 AND provider = $2 AND symbol = $3;

-- name: create
INSERT INTO series (market, provider, symbol, calendar) VALUES ($1, $2, $3, $4)
ON CONFLICT (market, provider, symbol) DO UPDATE SET market = excluded.market
RETURNING id, revision, calendar;

-- name: lock
SELECT revision FROM series WHERE id = $1 FOR UPDATE;

-- name: bump
UPDATE series SET revision = revision + 1 WHERE id = $1 RETURNING revision;
