-- name: bounds
SELECT starts, ends FROM trading_calendars WHERE calendar = $1;

-- name: read
SELECT session_date, opens, closes, extended_opens, extended_closes
FROM trading_sessions WHERE calendar = $1 ORDER BY session_date;

-- name: put_calendar
INSERT INTO trading_calendars (calendar, starts, ends) VALUES ($1, $2, $3)
ON CONFLICT (calendar) DO UPDATE SET starts = excluded.starts, ends = excluded.ends;

-- name: clear
DELETE FROM trading_sessions WHERE calendar = $1;

-- name: put
INSERT INTO trading_sessions (calendar, session_date, opens, closes, extended_opens, extended_closes)
SELECT $1, * FROM unnest($2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[]);
