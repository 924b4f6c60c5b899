-- What a moderator may do. Every function runs as the owner, knows who asks by app.caller(), asks
-- for the caller's right to the image's source and leaves a row in the audit.

CREATE OR REPLACE FUNCTION app.me() RETURNS app.moderators
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    name text := app.caller();
    who app.moderators;
BEGIN
    IF name IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = SESSION_USER || ' did not say for which moderator it asks',
            HINT = 'In each transaction: SELECT set_config(''unlatent.caller'', name, true).';
    END IF;
    SELECT * INTO who FROM app.moderators m WHERE m.moderator = name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = name || ' is not a moderator',
            HINT = 'An operator adds one with `unlatent moderators allow`.';
    END IF;
    RETURN who;
END
$$;

-- An image of a source that the caller may not see answers like one that does not exist. Reading
-- takes no lock: a caller whose transaction then idles must not hold up whoever changes the image.
CREATE OR REPLACE FUNCTION app.seen_image(who app.moderators, image uuid) RETURNS app.images
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images;
BEGIN
    IF image IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'name an image: its id is empty';
    END IF;
    SELECT * INTO found_image FROM app.images i
    WHERE i.id = image AND (who.every_source OR i.source = ANY (who.sources));
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'no_data_found', MESSAGE = 'no image ' || image;
    END IF;
    RETURN found_image;
END
$$;

-- For functions that write: calls on one image take turns, and each sees what the last one did. The
-- turn is no lock of the image's row: a caller who then idles must not keep workers and bridges from
-- it, nor from what they do together with it.
CREATE OR REPLACE FUNCTION app.image_in_turn(who app.moderators, image uuid) RETURNS app.images
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    PERFORM app.seen_image(who, image);
    PERFORM pg_advisory_xact_lock(hashtextextended(image::text, 0));
    RETURN app.seen_image(who, image);
END
$$;

CREATE OR REPLACE FUNCTION app.current_verdict(image uuid) RETURNS app.verdicts
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT v FROM app.verdicts v
    WHERE v.image_id = image AND v.role = 'champion'
    ORDER BY v.scored_at DESC, v.id DESC
    LIMIT 1
$$;

CREATE OR REPLACE FUNCTION app.last_decision(image uuid) RETURNS app.decisions
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT d FROM app.decisions d WHERE d.image_id = image ORDER BY d.id DESC LIMIT 1
$$;

CREATE OR REPLACE FUNCTION app.audit(doing text, image uuid, why text, detail jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, app, pg_temp AS $$
    -- Whoever acts through the console is the actor; `via` says that the console said so.
    INSERT INTO app.audit_log (actor, action, image_id, reason, detail)
    VALUES (app.caller(), doing, image, why, jsonb_strip_nulls(
        detail || jsonb_build_object('via', nullif(SESSION_USER, app.caller()))
    ))
$$;

CREATE OR REPLACE FUNCTION app.what_is_shown(image uuid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT jsonb_build_object(
        'verdict_id', v.id, 'label', v.label, 'score', v.score, 'tier', v.tier,
        'model_version', v.model_version, 'policy_id', v.policy_id
    )
    FROM app.current_verdict(image) v
$$;

-- Whether the caller was shown what the detector said of the image, or has judged it, after which
-- everything is shown.
CREATE OR REPLACE FUNCTION app.knows_verdict(image uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM app.audit_log a WHERE a.image_id = image AND a.actor = app.caller()
        AND (a.detail ? 'saw' OR a.action IN ('decide', 'overturn', 'undo', 'opinion'))
    )
$$;

-- Whether the caller was given the image to judge without knowing the verdict, and does not know it.
CREATE OR REPLACE FUNCTION app.is_blind(image uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM app.audit_log a
        WHERE a.image_id = image AND a.actor = app.caller() AND a.detail ? 'blind'
    ) AND NOT app.knows_verdict(image)
$$;

-- For the audit: what the caller was shown of the image, or that it was nothing.
CREATE OR REPLACE FUNCTION app.what_was_seen(image uuid, blind boolean) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT CASE WHEN blind THEN jsonb_build_object('blind', true)
        ELSE jsonb_build_object('saw', app.what_is_shown(image)) END
$$;

-- Puts an image before the moderators, again if need be. While an appeal is open it waits as that,
-- whatever else is asked of it: who was appealed against must not be given it.
CREATE OR REPLACE FUNCTION app.queue_image(image app.images, its_queue text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    verdict app.verdicts := app.current_verdict(image.id);
BEGIN
    IF (app.open_appeal_of(image.id)).id IS NOT NULL THEN
        its_queue := 'appeal';
    END IF;
    INSERT INTO app.reviews AS r (
        image_id, source, queue, verdict_id, uncertainty, reach, rank_at
    ) VALUES (
        image.id, image.source, its_queue, verdict.id, 1, 1, app.rank_at(now(), 1, 1)
    )
    ON CONFLICT (image_id) DO UPDATE SET
        queue = excluded.queue, verdict_id = excluded.verdict_id, uncertainty = 1,
        queued_at = now(), rank_at = app.rank_at(now(), 1, r.reach), closed_at = NULL,
        claimed_until = CASE WHEN r.closed_at IS NULL THEN r.claimed_until END;
END
$$;

-- How long a claim lasts from now.
CREATE OR REPLACE FUNCTION app.claim_time() RETURNS interval
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT make_interval(mins => coalesce(
        (SELECT c.value::integer FROM app.config c WHERE c.name = 'claim_minutes'), 15
    ))
$$;

-- Claims images for the caller, who holds the lock of their rows of the queue, and returns what the
-- caller may know of them: of the random audit neither verdict nor queue, before they have decided.
CREATE OR REPLACE FUNCTION app.take(taken uuid[]) RETURNS SETOF moderation.review_queue
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    name text := app.caller();
    ends timestamptz := clock_timestamp() + app.claim_time();
    one app.reviews;
BEGIN
    UPDATE app.reviews r SET claimed_until = ends WHERE r.image_id = ANY (taken);
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'expired'
    WHERE c.image_id = ANY (taken) AND c.closed_at IS NULL;
    INSERT INTO app.claims (image_id, moderator, queue, since, until)
    SELECT r.image_id, name, r.queue, clock_timestamp(), ends
    FROM app.reviews r WHERE r.image_id = ANY (taken);
    FOR one IN SELECT * FROM app.reviews r WHERE r.image_id = ANY (taken) LOOP
        PERFORM app.audit('claim', one.image_id, one.queue, jsonb_build_object('until', ends)
            || app.what_was_seen(
                one.image_id, one.queue = 'audit' AND NOT app.knows_verdict(one.image_id)
            ));
    END LOOP;
    RETURN QUERY SELECT * FROM app.claimed(taken);
END
$$;

-- Rows of the queue that the caller holds, as far as they may know them.
CREATE OR REPLACE FUNCTION app.claimed(images uuid[]) RETURNS SETOF moderation.review_queue
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    shown moderation.review_queue;
    known moderation.review_queue;
BEGIN
    FOR shown IN
        SELECT * FROM moderation.review_queue q WHERE q.image_id = ANY (images) ORDER BY q.rank_at
    LOOP
        IF app.is_blind(shown.image_id) THEN
            -- What may be known is named, so that a column that the view gains is not.
            known := NULL;
            known.image_id := shown.image_id;
            known.source := shown.source;
            known.queued_at := shown.queued_at;
            known.claimed_by := shown.claimed_by;
            known.claimed_until := shown.claimed_until;
            known.uploader := shown.uploader;
            known.uploaded_at := shown.uploaded_at;
            known.format := shown.format;
            known.width := shown.width;
            known.height := shown.height;
            known.exif_make := shown.exif_make;
            known.exif_model := shown.exif_model;
            known.exif_software := shown.exif_software;
            known.iptc_asserts_ai := shown.iptc_asserts_ai;
            known.c2pa_state := shown.c2pa_state;
            known.c2pa_asserts_ai := shown.c2pa_asserts_ai;
            known.image_url := shown.image_url;
            known.declares_ai := shown.declares_ai;
            known.declared_generator := shown.declared_generator;
            known.c2pa_signer_state := shown.c2pa_signer_state;
            known.original_removed_at := shown.original_removed_at;
            shown := known;
        END IF;
        RETURN NEXT shown;
    END LOOP;
END
$$;

DROP FUNCTION IF EXISTS moderation.claim_next(integer, text);
CREATE OR REPLACE FUNCTION moderation.claim_next(
    n integer DEFAULT 1, queue text DEFAULT NULL, sources text[] DEFAULT NULL
) RETURNS SETOF moderation.review_queue
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    taken uuid[];
BEGIN
    IF n IS NULL OR n NOT BETWEEN 1 AND 100 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'claim between 1 and 100 images at a time';
    END IF;
    IF cardinality(sources) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'name a source to claim from, or none for every source that you may see';
    END IF;
    IF queue NOT IN ('flagged', 'unsure', 'audit', 'appeal', 'report', 'requested') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'no queue ' || quote_literal(queue),
            HINT = 'The queues are flagged, unsure, audit, appeal, report and requested.';
    END IF;
    -- The row itself says until when it is claimed: after a wait or a race, Postgres checks the
    -- newest version of the row again, but not what a subquery once said. What subqueries say here
    -- is the caller's own doing, of which there is no race; each is asked of one row of the queue
    -- after the other, until there are enough.
    SELECT array_agg(free.image_id) INTO taken FROM (
        SELECT r.image_id FROM app.reviews r
        WHERE r.closed_at IS NULL
          AND (r.claimed_until IS NULL OR r.claimed_until < clock_timestamp())
          AND (claim_next.queue IS NULL OR r.queue = claim_next.queue)
          AND (claim_next.sources IS NULL OR r.source = ANY (claim_next.sources))
          AND (who.every_source OR r.source = ANY (who.sources))
          -- Skipped by the caller. Written so that the planner expects most rows to pass: expecting
          -- few, it would sort a whole queue instead of reading it from its front.
          AND who.moderator IS DISTINCT FROM (
            SELECT s.moderator FROM app.skips s
            WHERE s.image_id = r.image_id AND s.moderator = who.moderator
          )
          -- Somebody else must look at what the caller said last, and close an appeal against it.
          AND who.moderator IS DISTINCT FROM (
            SELECT d.moderator FROM app.decisions d WHERE d.image_id = r.image_id
            ORDER BY d.id DESC LIMIT 1
          )
          AND CASE WHEN r.queue = 'appeal' THEN NOT (
            app.is_party(app.open_appeal_of(r.image_id), who.moderator)
            OR app.had_part(r.image_id, who.moderator)
          ) ELSE true END
        ORDER BY r.rank_at
        LIMIT claim_next.n
        FOR UPDATE SKIP LOCKED
    ) free;
    IF taken IS NOT NULL THEN
        RETURN QUERY SELECT * FROM app.take(taken);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION moderation.claim(image uuid) RETURNS SETOF moderation.review_queue
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
    review app.reviews;
    holder text;
BEGIN
    SELECT * INTO review FROM app.reviews r
    WHERE r.image_id = found_image.id AND r.closed_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' does not wait for a person',
            HINT = 'moderation.request_review puts it into the queue.';
    END IF;
    SELECT c.moderator INTO holder FROM app.claims c
    WHERE c.image_id = image AND c.closed_at IS NULL AND c.until > clock_timestamp();
    IF holder = who.moderator THEN
        RETURN QUERY SELECT * FROM app.claimed(ARRAY[image]);
        RETURN;
    END IF;
    IF holder IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is claimed by ' || holder;
    END IF;
    IF review.queue = 'appeal' AND app.is_party(app.open_appeal_of(image), who.moderator) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'image ' || image || ' is appealed against what you decided: '
                || 'somebody else closes that';
    END IF;
    RETURN QUERY SELECT * FROM app.take(ARRAY[image]);
END
$$;

CREATE OR REPLACE FUNCTION moderation.extend(image uuid) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
    held app.claims;
    ends timestamptz;
BEGIN
    -- Whoever claims the image next holds its row of the queue meanwhile.
    PERFORM FROM app.reviews r WHERE r.image_id = found_image.id FOR UPDATE;
    SELECT * INTO held FROM app.claims c
    WHERE c.image_id = found_image.id AND c.closed_at IS NULL AND c.moderator = who.moderator
      AND c.until > clock_timestamp();
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'you do not hold image ' || image || ', or no longer',
            HINT = 'moderation.claim claims it.';
    END IF;
    -- Whoever needs longer than four times leaves the image to somebody else for a while.
    ends := least(clock_timestamp() + app.claim_time(), held.since + 4 * app.claim_time());
    IF ends <= held.until THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'your claim of image ' || image || ' cannot last longer than until '
                || to_char(held.until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'),
            HINT = 'Decide, or release it so that others see it.';
    END IF;
    UPDATE app.claims c SET until = ends WHERE c.id = held.id;
    UPDATE app.reviews r SET claimed_until = ends WHERE r.image_id = found_image.id;
    PERFORM app.audit('extend', image, NULL, jsonb_build_object('until', ends));
    RETURN ends;
END
$$;

CREATE OR REPLACE FUNCTION moderation.skip(image uuid, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
BEGIN
    INSERT INTO app.skips AS s (image_id, moderator, why, created_at)
    VALUES (found_image.id, who.moderator, left(skip.why, 4000), clock_timestamp())
    ON CONFLICT ON CONSTRAINT pk_skips DO UPDATE SET
        why = excluded.why, created_at = excluded.created_at;
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'released'
    WHERE c.image_id = found_image.id AND c.closed_at IS NULL AND c.moderator = who.moderator;
    IF FOUND THEN
        UPDATE app.reviews r SET claimed_until = NULL WHERE r.image_id = found_image.id;
    END IF;
    PERFORM app.audit('skip', image, left(skip.why, 4000), '{}');
END
$$;

CREATE OR REPLACE FUNCTION moderation.release(image uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images := app.image_in_turn(app.me(), image);
BEGIN
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'released'
    WHERE c.image_id = found_image.id AND c.closed_at IS NULL AND c.moderator = app.caller();
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE app.reviews r SET claimed_until = NULL WHERE r.image_id = found_image.id;
    PERFORM app.audit('release', found_image.id, NULL, '{}');
    RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION moderation.request_review(
    image uuid, queue text DEFAULT 'requested', note text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images := app.image_in_turn(app.me(), image);
BEGIN
    IF queue IS NULL OR queue NOT IN ('requested', 'report') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a review is asked for as requested or report';
    END IF;
    PERFORM app.queue_image(found_image, queue);
    PERFORM app.audit('request_review', image, queue, jsonb_build_object('note', left(note, 4000)));
END
$$;

-- Recall over all of the caller's sources: strata are source, policy and week, each with its own
-- rate of misses (Cochran, "Sampling Techniques", 3rd ed., 5.3); strata without an audited image
-- take the others' rate, and `uncovered` says what share of unflagged uploads that is. Verdicts count
-- from the day (UTC) of `since` on.
CREATE OR REPLACE FUNCTION moderation.recall(
    model text DEFAULT NULL, since timestamptz DEFAULT '-infinity'
) RETURNS TABLE (
    model_version text, flagged bigint, flagged_decided bigint, unflagged bigint, audited bigint,
    audited_generated bigint, uncovered float8, recall float8, recall_low float8,
    recall_high float8
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
BEGIN
    RETURN QUERY
    WITH strata AS (
        SELECT c.model_version AS version, c.tier = 'allow' AS passed, sum(c.n)::float8 AS total,
               coalesce(sum(c.n) FILTER (WHERE c.decision IS NOT NULL AND x.counts), 0)::float8
                   AS n,
               coalesce(sum(c.n) FILTER (WHERE c.decision = 'generated' AND x.counts), 0)::float8
                   AS hits
        FROM app.verdict_counts c
        -- Of what was let through, only what the audit drew says something about the rest.
        CROSS JOIN LATERAL (SELECT c.tier <> 'allow' OR c.audited AS counts) x
        WHERE c.tier IS NOT NULL AND c.day >= (since AT TIME ZONE 'UTC')::date
          AND (model IS NULL OR c.model_version = model)
          AND (who.every_source OR c.source = ANY (who.sources))
        GROUP BY c.model_version, c.source, c.policy_id, date_trunc('week', c.day::timestamp),
            c.tier
        HAVING sum(c.n) > 0
    ), sides AS (
        SELECT t.version, t.passed, sum(t.total) AS total, sum(t.n) AS n, sum(t.hits) AS hits,
               sum(t.total) FILTER (WHERE t.n > 0) AS covered,
               sum(t.total * t.hits / t.n) FILTER (WHERE t.n > 0) AS weighed,
               sum(t.total ^ 2 * (1 - t.n / t.total) / t.n) FILTER (WHERE t.n > 0) AS spread
        FROM strata t GROUP BY t.version, t.passed
    ), rates AS (
        SELECT s.*, s.weighed / s.covered AS rate,
               CASE WHEN s.spread = 0 AND s.covered = s.total THEN 'infinity'::float8
                    ELSE s.covered ^ 2 / nullif(s.spread, 0) END AS size
        FROM sides s
    )
    SELECT m.version, coalesce(f.total, 0)::bigint, coalesce(f.n, 0)::bigint,
           coalesce(u.total, 0)::bigint, coalesce(u.n, 0)::bigint, coalesce(u.hits, 0)::bigint,
           1 - coalesce(u.covered, 0) / nullif(u.total, 0), e.recall, e.low, e.high
    FROM (SELECT DISTINCT r.version FROM rates r) m
    LEFT JOIN rates f ON f.version = m.version AND NOT f.passed
    LEFT JOIN rates u ON u.version = m.version AND u.passed
    LEFT JOIN LATERAL moderation.recall_interval(
        coalesce(f.total, 0), CASE WHEN f.total IS NULL THEN 0 ELSE f.rate END,
        CASE WHEN f.total IS NULL THEN 'infinity' ELSE f.size END,
        coalesce(u.total, 0), CASE WHEN u.total IS NULL THEN 0 ELSE u.rate END,
        CASE WHEN u.total IS NULL THEN 'infinity' ELSE u.size END
    ) e ON true;
END
$$;
