-- name: rows_done
SELECT rows_done FROM import_progress
WHERE fingerprint = $1 AND series_id = $2 AND timeframe = $3 AND NOT finished;

-- name: advance
INSERT INTO import_progress (fingerprint, series_id, timeframe, rows_done) VALUES ($1, $2, $3, $4)
ON CONFLICT (fingerprint, series_id, timeframe) DO UPDATE
    SET rows_done = excluded.rows_done, finished = false, updated_at = now();

-- name: finish
UPDATE import_progress SET finished = true, updated_at = now()
WHERE fingerprint = $1 AND series_id = $2 AND timeframe = $3;
