-- What is no longer needed goes, in batches that beat asks for. Nothing goes that a legal hold, an
-- appeal or the provenance of a model may ask for.

-- Whether somebody may still ask how it went with an image: its object is held, under whichever of
-- its rows, people judged it, if only in a second opinion or an appeal, a model learnt from it, or it
-- was quarantined for killing workers.
CREATE OR REPLACE FUNCTION app.is_history_kept(image uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT app.is_held(image)
        OR EXISTS (SELECT FROM app.decisions d WHERE d.image_id = image)
        OR EXISTS (SELECT FROM app.opinions o WHERE o.image_id = image)
        OR EXISTS (SELECT FROM app.appeals a WHERE a.image_id = image)
        OR EXISTS (SELECT FROM app.snapshot_items s WHERE s.image_id = image)
        OR EXISTS (
            SELECT FROM app.images i WHERE i.id = image AND i.state IN ('pending', 'quarantined')
        )
$$;

-- Removes at most `most` rows of one kind, never more than 10,000, that are older than the time which
-- the owner wrote into app.config: whoever calls it cannot have younger ones removed, and where no time
-- is written nothing goes. Returns how many it looked at, less than `most` when nothing was left. Two
-- at once share the work of the kinds that keep nothing; of the others one does it. Those are read in
-- the order of their numbers, which is about that of time, from where the last batch ended, so that
-- what is kept is not read again and again; once a day from the front, because a hold may have been
-- lifted.
CREATE OR REPLACE FUNCTION app.prune(
    kind text, most integer, OUT looked bigint, OUT removed bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    place app.prune_cursors;
    last bigint;
    age interval := (
        SELECT c.value::float8 * interval '1 day' FROM app.config c WHERE c.name = kind || '_days'
    );
BEGIN
    IF kind NOT IN ('outbox', 'removals', 'leases', 'audit') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'no kind ' || kind;
    END IF;
    looked := 0;
    removed := 0;
    IF age IS NULL THEN
        RETURN;
    END IF;
    most := least(most, 10000);
    IF kind = 'outbox' THEN
        WITH gone AS (
            DELETE FROM app.outbox o WHERE o.id IN (
                SELECT x.id FROM app.outbox x
                WHERE (x.delivered_at IS NOT NULL OR x.dead_at IS NOT NULL)
                  AND coalesce(x.delivered_at, x.dead_at) < now() - age
                ORDER BY coalesce(x.delivered_at, x.dead_at) LIMIT most
                FOR UPDATE SKIP LOCKED
            ) RETURNING 1
        )
        SELECT count(*), count(*) INTO looked, removed FROM gone;
        RETURN;
    ELSIF kind = 'removals' THEN
        WITH gone AS (
            DELETE FROM app.object_removals o WHERE o.id IN (
                SELECT x.id FROM app.object_removals x WHERE x.removed_at < now() - age
                ORDER BY x.removed_at LIMIT most
                FOR UPDATE SKIP LOCKED
            ) RETURNING 1
        )
        SELECT count(*), count(*) INTO looked, removed FROM gone;
        RETURN;
    END IF;
    INSERT INTO app.prune_cursors AS c (kind) VALUES (prune.kind) ON CONFLICT DO NOTHING;
    SELECT * INTO place FROM app.prune_cursors c WHERE c.kind = prune.kind
    FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF place.began_at < now() - interval '1 day' THEN
        place.after_id := 0;
        place.began_at := now();
    END IF;
    IF kind = 'leases' THEN
        WITH old AS MATERIALIZED (
            SELECT x.* FROM (
                SELECT l.id, l.image_id, l.since FROM app.leases l
                WHERE l.id > place.after_id ORDER BY l.id LIMIT most
            ) x WHERE x.since < now() - age
        ), gone AS (
            DELETE FROM app.leases l USING old o
            WHERE l.id = o.id AND l.closed_at < now() - age
              AND NOT app.is_history_kept(o.image_id)
            RETURNING 1
        )
        SELECT count(*), max(o.id), (SELECT count(*) FROM gone) INTO looked, last, removed
        FROM old o;
    ELSE
        -- The table is append-only for everybody and everything else.
        PERFORM set_config('unlatent.pruning', 'on', true);
        WITH old AS MATERIALIZED (
            SELECT x.* FROM (
                SELECT a.id, a.action, a.image_id, a.at FROM app.audit_log a
                WHERE a.id > place.after_id ORDER BY a.id LIMIT most
            ) x WHERE x.at < now() - age
        ), gone AS (
            DELETE FROM app.audit_log a USING old o
            WHERE a.id = o.id AND o.action = 'state' AND NOT app.is_history_kept(o.image_id)
            RETURNING 1
        )
        SELECT count(*), max(o.id), (SELECT count(*) FROM gone) INTO looked, last, removed
        FROM old o;
        PERFORM set_config('unlatent.pruning', '', true);
    END IF;
    UPDATE app.prune_cursors c
    SET after_id = coalesce(last, place.after_id), began_at = place.began_at
    WHERE c.kind = prune.kind;
END
$$;
