-- name: find
SELECT id, revision FROM series WHERE market = $1 AND provider = $2 AND symbol = $3;

-- name: create
INSERT INTO series (market, provider, symbol) VALUES ($1, $2, $3)
ON CONFLICT (market, provider, symbol) DO UPDATE SET market = excluded.market
RETURNING id, revision;

-- name: lock
SELECT revision FROM series WHERE id = $1 FOR UPDATE;

-- name: bump
UPDATE series SET revision = revision + 1 WHERE id = $1;

-- name: list
SELECT symbol FROM series WHERE market = $1 AND provider = $2 ORDER BY symbol;
