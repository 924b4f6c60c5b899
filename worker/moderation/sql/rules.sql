-- What happens by itself: a champion's verdict meets the policy in force, enters the queue, is told
-- to whoever listens; a removed image leaves the queue. Nobody but the owner can call these.

-- Who asks: the login, or whom the console names for this transaction. No other login is believed.
CREATE OR REPLACE FUNCTION app.caller() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CALLER
$$;

CREATE OR REPLACE FUNCTION app.policy_of(source_name text) RETURNS app.policies
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT p FROM app.policies p
    WHERE p.source = source_name OR p.source IS NULL
    ORDER BY p.source NULLS LAST, p.id DESC
    LIMIT 1
$$;

-- A label that the detector was sure enough to give, or refused to give, is never let through
-- unseen: thresholds and labels come from different hands.
CREATE OR REPLACE FUNCTION app.tier_of(
    score float8, label text, review float8, flag float8, flag_high float8
) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN score >= flag_high THEN 'flag_high'
        WHEN score >= flag THEN 'flag'
        WHEN score >= review OR label <> 'real' THEN 'review'
        ELSE 'allow'
    END
$$;

-- The draw depends on the image alone, so that a second verdict does not draw a second time and an
-- uploader, who never learns the id, cannot steer it.
CREATE OR REPLACE FUNCTION app.audit_draw(image uuid) RETURNS float8
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ('x' || substr(md5('audit ' || image::text), 1, 13))::bit(52)::bigint / 2.0 ^ 52
$$;

-- Age, uncertainty and reach in one moment: full uncertainty is worth four hours of waiting, every
-- e-fold of reach two. All ages grow alike, so the order never has to be computed anew.
CREATE OR REPLACE FUNCTION app.rank_at(queued_at timestamptz, uncertainty float8, reach bigint)
RETURNS timestamptz
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT queued_at - uncertainty * interval '4 hours' - ln(greatest(reach, 1)) * interval '2 hours'
$$;

-- Sixteen chunks of sixteen bits, each told from the others by its place: two hashes that differ in
-- at most 31 bits differ in at most one bit of some chunk (pigeonhole; Norouzi, Punjani and Fleet,
-- "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012).
CREATE OR REPLACE FUNCTION app.pdq_chunks(pdq bytea) RETURNS integer[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(
        (place << 16) | (get_byte(pdq, 2 * place) << 8) | get_byte(pdq, 2 * place + 1)
    )
    FROM generate_series(0, 15) place
$$;

-- Any login can fill the server's queue of notifications, by listening and then idling in a
-- transaction; whoever notifies into a full queue fails at commit. A verdict must not.
CREATE OR REPLACE FUNCTION app.notify(channel text, payload text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_notify(channel, payload) WHERE pg_notification_queue_usage() < 0.5
$$;

-- A message waits for `delay` before it is sent: meanwhile what it says can be undone. Its id is
-- random, so that no other deployment and no restored copy of this one gives it to another message.
-- An endpoint that is switched off gets it when somebody has it replayed.
DROP FUNCTION IF EXISTS app.emit(text, uuid, jsonb);
CREATE OR REPLACE FUNCTION app.emit(
    topic text, image uuid, payload jsonb, delay interval DEFAULT '0 s'
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    its_id text := 'msg_' || replace(gen_random_uuid()::text, '-', '');
    told jsonb;
BEGIN
    IF topic = ANY (string_to_array(
        (SELECT c.value FROM app.config c WHERE c.name = 'webhook_topics'), ','
    )) THEN
        told := jsonb_strip_nulls(
            jsonb_build_object('image_id', image, 'at', clock_timestamp()) || payload
        );
        INSERT INTO app.outbox (
            message_id, endpoint, topic, payload, next_attempt_at, dead_at, last_error
        )
        SELECT its_id, e.name, topic, told, clock_timestamp() + delay,
            CASE WHEN w.switched_off_at IS NOT NULL THEN clock_timestamp() END,
            e.name || ' is switched off: ' || w.last_error
        FROM unnest(string_to_array(coalesce(
            (SELECT c.value FROM app.config c WHERE c.name = 'webhook_endpoints'), 'main'
        ), ',')) e (name)
        LEFT JOIN app.webhook_endpoints w
            ON w.name = e.name AND w.switched_off_at IS NOT NULL;
        PERFORM app.notify('unlatent_outbox', '');
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION app.apply_policy() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    its_source text := (SELECT i.source FROM app.images i WHERE i.id = NEW.image_id);
    policy app.policies := app.policy_of(its_source);
BEGIN
    NEW.policy_id := policy.id;
    NEW.tier := app.tier_of(NEW.score, NEW.label, policy.review, policy.flag, policy.flag_high);
    NEW.held := NEW.tier IN ('flag', 'flag_high') AND EXISTS (
        SELECT FROM app.breakers b WHERE b.source = its_source AND b.closed_at IS NULL
    );
    IF NEW.held THEN
        NEW.tier := 'review';
    END IF;
    RETURN NEW;
END
$$;

-- How many uploads of the same source have the same bytes, 1 to 1000. What comes to other sources is
-- not for the eyes of whoever reviews this one.
CREATE OR REPLACE FUNCTION app.reach_of(image app.images) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT greatest(count(*), 1) FROM (
        SELECT FROM app.images i
        WHERE i.sha256 = image.sha256 AND i.source = image.source LIMIT 1000
    ) uploads
$$;

-- Runs at commit, when the facts that came with the verdict are in the image's row.
CREATE OR REPLACE FUNCTION app.follow_verdict() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    image app.images;
    policy app.policies;
    its_queue text;
    its_uncertainty float8 := 0;
    its_reach bigint := 1;
    its_share float8;
BEGIN
    SELECT * INTO image FROM app.images i WHERE i.id = NEW.image_id;
    SELECT * INTO policy FROM app.policies p WHERE p.id = NEW.policy_id;
    PERFORM app.notify('unlatent_verdicts', '');
    PERFORM app.emit('verdict', NEW.image_id, jsonb_build_object(
        'source', image.source, 'label', NEW.label, 'score', NEW.score, 'tier', NEW.tier,
        'held', NEW.held, 'model_version', NEW.model_version, 'policy_id', NEW.policy_id
    ));
    -- Withdrawn, erased or failed meanwhile: there is nothing left to act on.
    IF image.state <> 'scored' THEN
        RETURN NULL;
    END IF;
    IF NEW.tier IN ('flag', 'flag_high') THEN
        PERFORM app.emit('verdict.flagged', NEW.image_id, jsonb_build_object(
            'source', image.source, 'score', NEW.score, 'tier', NEW.tier,
            'model_version', NEW.model_version, 'policy_id', NEW.policy_id
        ));
    END IF;
    -- A flat image's hash says little: it would be near everything.
    IF image.pdq_quality >= 50 THEN
        INSERT INTO app.near_duplicate_keys VALUES (image.id, app.pdq_chunks(image.pdq))
        ON CONFLICT DO NOTHING;
    END IF;
    IF app.audit_draw(image.id) < policy.audit_share AND NEW.tier = 'allow' THEN
        its_share := policy.audit_share;
    END IF;
    its_queue := CASE
        WHEN NEW.held OR NEW.tier IN ('flag', 'flag_high') THEN 'flagged'
        WHEN NEW.tier = 'review' THEN 'unsure'
        WHEN its_share IS NOT NULL THEN 'audit'
    END;
    IF its_queue IS NULL THEN
        RETURN NULL;
    END IF;
    -- The audit waits by age alone: what it shows must not depend on what it looks like.
    IF its_queue <> 'audit' THEN
        its_uncertainty := 1 - abs(NEW.score - policy.flag)
            / greatest(policy.flag, 1 - policy.flag);
        its_reach := app.reach_of(image);
    END IF;
    INSERT INTO app.reviews AS r (
        image_id, source, queue, verdict_id, uncertainty, reach, audit_share, rank_at
    ) VALUES (
        image.id, image.source, its_queue, NEW.id, its_uncertainty, its_reach, its_share,
        app.rank_at(now(), its_uncertainty, its_reach)
    )
    ON CONFLICT (image_id) DO UPDATE SET
        audit_share = coalesce(r.audit_share, excluded.audit_share),
        verdict_id = CASE WHEN r.closed_at IS NULL THEN excluded.verdict_id ELSE r.verdict_id END,
        queue = CASE
            WHEN r.closed_at IS NULL AND r.queue IN ('flagged', 'unsure', 'audit')
            THEN excluded.queue ELSE r.queue
        END;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION app.leave_queue() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    UPDATE app.reviews r SET closed_at = now()
    WHERE r.image_id = NEW.id AND r.closed_at IS NULL;
    RETURN NULL;
END
$$;

-- Whether a person said otherwise than the verdict that the decision names: what asks for such
-- decisions reads an index of these alone.
CREATE OR REPLACE FUNCTION app.mark_contradiction() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    NEW.contradicts := EXISTS (
        SELECT FROM app.verdicts v WHERE v.id = NEW.verdict_id AND v.label <> NEW.decision
    );
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION app.audit_policy() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    INSERT INTO app.audit_log (action, reason, detail)
    VALUES ('policy', NEW.reason, to_jsonb(NEW) - 'reason');
    RETURN NULL;
END
$$;

-- Opens the breaker of every source whose share of flags left the band of its policy; a flag that
-- an open breaker held back counts as one. After a resumption the count starts anew.
CREATE OR REPLACE FUNCTION app.check_breakers()
RETURNS TABLE (tripped text, tripped_share float8, counted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    seen record;
BEGIN
    FOR seen IN
        WITH recent AS MATERIALIZED (
            SELECT f.source, f.at, f.images, f.flagged FROM app.flag_counts f
            WHERE f.at > now() - (SELECT max(p.breaker_window) FROM app.policies p)
        ), sources AS (
            SELECT s.source, p.id AS policy_id, p.breaker_images, p.min_flag_share,
                   p.max_flag_share, greatest(now() - p.breaker_window, (
                       SELECT max(b.closed_at) FROM app.breakers b WHERE b.source = s.source
                   )) AS since
            FROM (SELECT DISTINCT x.source FROM recent x) s,
                 LATERAL app.policy_of(s.source) p
            WHERE NOT EXISTS (
                SELECT FROM app.breakers b WHERE b.source = s.source AND b.closed_at IS NULL
            )
        )
        SELECT r.source, s.policy_id, sum(r.images)::bigint AS images,
               sum(r.flagged)::float8 / nullif(sum(r.images), 0) AS share
        FROM recent r
        JOIN sources s ON s.source = r.source
        WHERE r.at > s.since
        GROUP BY r.source, s.policy_id, s.breaker_images, s.min_flag_share, s.max_flag_share
        HAVING sum(r.images) >= s.breaker_images
           AND NOT sum(r.flagged)::float8 / nullif(sum(r.images), 0)
               BETWEEN s.min_flag_share AND s.max_flag_share
    LOOP
        INSERT INTO app.breakers (source, policy_id, images, flag_share)
        VALUES (seen.source, seen.policy_id, seen.images, seen.share)
        ON CONFLICT DO NOTHING;
        CONTINUE WHEN NOT FOUND;
        INSERT INTO app.audit_log (action, to_state, reason, detail)
        VALUES ('breaker', 'open', seen.source, jsonb_build_object(
            'flag_share', seen.share, 'images', seen.images, 'policy_id', seen.policy_id
        ));
        PERFORM app.emit('breaker.opened', NULL, jsonb_build_object(
            'source', seen.source, 'flag_share', seen.share, 'images', seen.images
        ));
        RETURN QUERY SELECT seen.source, seen.share, seen.images;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION app.resume_flagging(source_name text, why text, by text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    UPDATE app.breakers b SET closed_at = clock_timestamp(), closed_by = by, close_reason = why
    WHERE b.source = source_name AND b.closed_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO app.audit_log (action, from_state, to_state, reason, detail)
    VALUES ('breaker', 'open', 'closed', source_name, jsonb_build_object('why', why, 'by', by));
    PERFORM app.emit('breaker.closed', NULL, jsonb_build_object('source', source_name, 'why', why));
    RETURN true;
END
$$;

-- The rows that stand for the stored object of an image: the image's own, those of the same version,
-- and, where one of the two has no version, those of the same etag (the same object announced twice).
-- A withdrawn row lost its object: what is stored now belongs to the rows that live.
CREATE OR REPLACE FUNCTION app.rows_of_object(image uuid) RETURNS SETOF app.images
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT o.*
    FROM app.images i JOIN app.images o ON o.bucket = i.bucket AND o.key = i.key
    WHERE i.id = image AND (
        o.id = i.id
        OR o.version_id = i.version_id
        OR (o.etag = i.etag AND (o.version_id IS NULL OR i.version_id IS NULL)
            AND (o.state = 'withdrawn') = (i.state = 'withdrawn'))
    )
$$;

-- A legal hold on any of those rows keeps the object, and with it all of them.
CREATE OR REPLACE FUNCTION app.is_held(image uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM app.rows_of_object(image) o
        JOIN app.legal_holds h ON h.image_id = o.id AND h.lifted_at IS NULL
    )
$$;

-- Groups of pictures are named after the hash of their first picture. When that one is erased, its
-- group goes on under a name that says nothing.
CREATE OR REPLACE FUNCTION app.rename_groups(image uuid, hash text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    named CONSTANT text[] := ARRAY[hash, 'image:' || hash, 'picture:' || hash];
BEGIN
    UPDATE app.regression_items r SET group_key = replace(r.group_key, hash, 'erased/' || image)
    WHERE r.group_key = ANY (named);
    UPDATE app.snapshot_items s SET group_key = replace(s.group_key, hash, 'erased/' || image)
    WHERE s.group_key = ANY (named);
END
$$;

-- The last step of an erasure: objects are gone, now everything in the rows that identifies the
-- upload, its content or its uploader goes; what was decided and by whom stays.
CREATE OR REPLACE FUNCTION app.erase_rows(image uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images;
BEGIN
    SELECT * INTO found_image FROM app.images i WHERE i.id = image FOR UPDATE;
    IF EXISTS (SELECT FROM app.legal_holds h WHERE h.image_id = image AND h.lifted_at IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is under a legal hold';
    END IF;
    -- What else is stored under the key still needs to know what was removed.
    DELETE FROM app.object_removals o
    WHERE o.bucket = found_image.bucket AND o.key = found_image.key AND NOT EXISTS (
        SELECT FROM app.images i
        WHERE i.bucket = o.bucket AND i.key = o.key AND i.id <> image
    );
    DELETE FROM app.provenance p WHERE p.image_id = image;
    DELETE FROM app.near_duplicate_keys k WHERE k.image_id = image;
    PERFORM app.rename_groups(image, found_image.sha256);
    UPDATE app.leases l SET detail = NULL WHERE l.image_id = image AND l.detail IS NOT NULL;
    UPDATE app.verdicts v SET evidence_uri = NULL, tiles = NULL WHERE v.image_id = image;
    UPDATE app.images i SET
        key = 'erased/' || i.id, version_id = NULL, etag = 'erased', sequencer = NULL,
        content_type = NULL, claimed_sha256 = NULL, sha256 = NULL, pdq = NULL, pdq_quality = NULL,
        size_bytes = NULL, uploader = NULL, detail = NULL, uploaded_at = NULL,
        state = 'withdrawn', reason = 'erased', state_since = clock_timestamp(),
        erased_at = clock_timestamp()
    WHERE i.id = image;
    UPDATE app.erasures e SET rows_done_at = clock_timestamp() WHERE e.image_id = image;
    INSERT INTO app.audit_log (action, image_id, reason)
    SELECT 'erased', image, e.reason FROM app.erasures e WHERE e.image_id = image;
    PERFORM app.emit('image.erased', image, jsonb_build_object('source', found_image.source));
END
$$;

-- A hook may name the source after the verdict: the open review belongs to that source, too.
CREATE OR REPLACE FUNCTION app.follow_source() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    UPDATE app.reviews r SET source = NEW.source WHERE r.image_id = NEW.id;
    UPDATE app.reviews r SET
        reach = counted.reach, rank_at = app.rank_at(r.queued_at, r.uncertainty, counted.reach)
    FROM app.reach_of(NEW) counted (reach)
    WHERE r.image_id = NEW.id AND r.queue IN ('flagged', 'unsure') AND r.closed_at IS NULL;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER apply_policy BEFORE INSERT OR UPDATE OF role ON app.verdicts
    FOR EACH ROW WHEN (NEW.role = 'champion') EXECUTE FUNCTION app.apply_policy();
-- A constraint trigger cannot be replaced, and to drop one locks readers out of the table, which may
-- be counted for minutes before this transaction ends.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_trigger t
        WHERE t.tgrelid = 'app.verdicts'::regclass AND t.tgname = 'follow_verdict'
    ) THEN
        CREATE CONSTRAINT TRIGGER follow_verdict AFTER INSERT OR UPDATE OF role ON app.verdicts
            DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.role = 'champion') EXECUTE FUNCTION app.follow_verdict();
    END IF;
END
$$;
CREATE OR REPLACE TRIGGER leave_queue AFTER UPDATE OF state ON app.images
    FOR EACH ROW WHEN (NEW.state = 'withdrawn' AND OLD.state <> 'withdrawn')
    EXECUTE FUNCTION app.leave_queue();
CREATE OR REPLACE TRIGGER follow_source AFTER UPDATE OF source ON app.images
    FOR EACH ROW WHEN (NEW.source <> OLD.source) EXECUTE FUNCTION app.follow_source();
CREATE OR REPLACE TRIGGER mark_contradiction BEFORE INSERT ON app.decisions
    FOR EACH ROW EXECUTE FUNCTION app.mark_contradiction();
CREATE OR REPLACE TRIGGER audit_policy AFTER INSERT ON app.policies
    FOR EACH ROW EXECUTE FUNCTION app.audit_policy();
