-- Whoever listens hears of every new revision of a series, whatever program made it, when it is committed: servers keep
-- answers in memory until then.
CREATE FUNCTION tell_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('candlery_revisions', NEW.id || ' ' || NEW.revision);
    RETURN NULL;
END $$;

CREATE TRIGGER series_revision AFTER UPDATE OF revision ON series
    FOR EACH ROW WHEN (NEW.revision IS DISTINCT FROM OLD.revision) EXECUTE FUNCTION tell_revision();
