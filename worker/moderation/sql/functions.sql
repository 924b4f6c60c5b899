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

CREATE OR REPLACE FUNCTION app.open_appeal_of(image uuid) RETURNS app.appeals
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT o FROM app.appeals o
    WHERE o.image_id = image AND o.event = 'opened' AND NOT EXISTS (
        SELECT FROM app.appeals c WHERE c.appeal_id = o.appeal_id AND c.event <> 'opened'
    )
    LIMIT 1
$$;

-- Whether an appeal is against what somebody said: the decision that it names is theirs, or they had
-- said the same before it. What others say after it was opened changes nothing in that.
CREATE OR REPLACE FUNCTION app.is_party(opened app.appeals, name text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM app.decisions appealed
        JOIN app.decisions d ON d.image_id = appealed.image_id AND d.id <= appealed.id
            AND d.decision = appealed.decision
        WHERE appealed.id = opened.decision_id AND d.moderator = name
    )
$$;

-- Whether somebody had a part in an appeal of the image that is closed: they opened or closed it, or
-- had decided the image before. Its outcome is not theirs to change.
CREATE OR REPLACE FUNCTION app.had_part(image uuid, name text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM app.appeals c
        JOIN app.appeals o ON o.appeal_id = c.appeal_id AND o.event = 'opened'
        WHERE c.image_id = image AND c.event IN ('upheld', 'overturned') AND (
            name IN (o.actor, c.actor) OR EXISTS (
                SELECT FROM app.decisions d
                WHERE d.image_id = image AND d.moderator = name AND d.id <= c.decision_id
            )
        )
    )
$$;

CREATE OR REPLACE FUNCTION app.refuse_part(image uuid, name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    IF app.had_part(image, name) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'image ' || image || ' was appealed: only somebody who had no part in that '
                || 'appeal changes its outcome',
            HINT = 'Who decided before it, opened it or closed it had a part.';
    END IF;
END
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

-- Whether the caller looks at the image without knowing what the detector said: they were given it
-- blind, and no function has shown them a verdict on it since, nor have they judged it.
CREATE OR REPLACE FUNCTION app.is_blind(image uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT coalesce(bool_or(a.detail ? 'blind') AND NOT bool_or(
        a.detail ? 'saw' OR a.action IN ('decide', 'overturn', 'undo', 'opinion')
    ), false)
    FROM app.audit_log a WHERE a.image_id = image AND a.actor = app.caller()
$$;

-- For the audit: what the caller was shown of the image, or that it was nothing.
CREATE OR REPLACE FUNCTION app.what_was_seen(image uuid, blind boolean) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT CASE WHEN blind THEN jsonb_build_object('blind', true)
        ELSE jsonb_build_object('saw', app.what_is_shown(image)) END
$$;

CREATE OR REPLACE FUNCTION app.check_reason(wanted text, reason text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    IF wanted IS NULL OR wanted NOT IN ('real', 'generated', 'unsure') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a decision is real, generated or unsure';
    END IF;
    IF NOT EXISTS (SELECT FROM app.reason_codes c WHERE c.code = reason AND c.decision = wanted)
    THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'no reason ' || coalesce(quote_literal(reason), 'given') || ' for ' || wanted,
            HINT = 'They are in moderation.reasons; `unlatent reasons` lists them.';
    END IF;
END
$$;

-- A closed report of a wrong label joins the regression corpus. Its group is that of the nearest
-- near-duplicate already there, so that a group is pinned or trained on as a whole; half are pinned.
CREATE OR REPLACE FUNCTION app.keep_for_regression(image app.images, decision_id bigint, label text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    verdict app.verdicts := app.current_verdict(image.id);
    its_group text;
    is_pinned boolean;
BEGIN
    -- What a later decision says of an image that is in the corpus already counts, whatever the
    -- detector said: an entry with the wrong label would ask every later model for that error.
    IF label NOT IN ('real', 'generated') THEN
        DELETE FROM app.regression_items r WHERE r.image_id = image.id;
        RETURN;
    END IF;
    UPDATE app.regression_items r
    SET decision_id = keep_for_regression.decision_id, label = keep_for_regression.label
    WHERE r.image_id = image.id;
    IF FOUND OR verdict.label IS NOT DISTINCT FROM label THEN
        RETURN;
    END IF;
    SELECT r.group_key, r.pinned INTO its_group, is_pinned
    FROM app.regression_items r JOIN app.images i ON i.id = r.image_id
    WHERE image.pdq_quality >= 50 AND i.pdq_quality >= 50
      AND bit_count(('x' || encode(i.pdq, 'hex'))::bit(256)
                  # ('x' || encode(image.pdq, 'hex'))::bit(256)) <= 31
    ORDER BY r.id
    LIMIT 1;
    its_group := coalesce(its_group, image.sha256, image.id::text);
    INSERT INTO app.regression_items (image_id, decision_id, label, group_key, created_at, pinned)
    VALUES (
        image.id, decision_id, label, its_group, clock_timestamp(),
        coalesce(is_pinned, get_byte(decode(md5('pinned ' || its_group), 'hex'), 0) < 128)
    );
END
$$;

-- `undone` is the caller's own decision of a moment ago, which the new one takes the place of.
DROP FUNCTION IF EXISTS app.record_decision(app.images, text, text, text, text, bigint);
CREATE OR REPLACE FUNCTION app.record_decision(
    image app.images, wanted text, reason text, note text, why text, overturned bigint,
    undone app.decisions DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    shown app.verdicts := app.current_verdict(image.id);
    is_blind boolean := app.is_blind(image.id);
    claim app.claims;
    told jsonb := to_jsonb(overturned);
    unsent app.outbox;
    made bigint;
BEGIN
    -- Closing the caller's claim; the time to decision is measured from it.
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'decided'
    WHERE c.image_id = image.id AND c.closed_at IS NULL AND c.moderator = app.caller()
    RETURNING * INTO claim;
    UPDATE app.reviews r SET closed_at = clock_timestamp(), claimed_until = NULL
    WHERE r.image_id = image.id AND r.closed_at IS NULL;
    INSERT INTO app.decisions (
        image_id, moderator, decision, reason_code, note, why_reviewed, verdict_id, overturns,
        claimed_at, created_at, blind
    ) VALUES (
        image.id, app.caller(), wanted, reason, left(note, 4000), why, shown.id, overturned,
        coalesce(claim.since, undone.claimed_at), clock_timestamp(), is_blind
    )
    RETURNING id INTO made;
    PERFORM app.audit(
        CASE WHEN undone.id IS NOT NULL THEN 'undo' WHEN overturned IS NULL THEN 'decide'
            ELSE 'overturn' END,
        image.id, reason,
        jsonb_build_object(
            'decision_id', made, 'decision', wanted, 'overturns', overturned, 'why', why
        ) || app.what_was_seen(image.id, is_blind)
    );
    PERFORM app.notify('unlatent_decisions', '');
    -- An undone decision that has not left yet never leaves, and no receiver hears of its id.
    IF undone.id IS NOT NULL THEN
        DELETE FROM app.outbox o
        WHERE o.topic = 'decision' AND (o.payload ->> 'decision_id')::bigint = undone.id
          AND o.delivered_at IS NULL AND o.dead_at IS NULL AND o.attempts = 0
          AND o.next_attempt_at BETWEEN undone.created_at AND undone.created_at + '1 min'::interval
        RETURNING * INTO unsent;
        IF FOUND THEN
            told := unsent.payload -> 'overturns';
        END IF;
    END IF;
    PERFORM app.emit('decision', image.id, jsonb_build_object(
        'source', image.source, 'decision_id', made, 'decision', wanted, 'reason', reason,
        'words', (SELECT c.words FROM app.reason_codes c WHERE c.code = reason),
        'overturns', told, 'label', shown.label, 'model_version', shown.model_version
    ), interval '15 seconds');
    -- A slip that was undone is no report of a wrong label.
    IF why IN ('appeal', 'report') OR undone.overturns IS NOT NULL
        OR (overturned IS NOT NULL AND undone.id IS NULL)
    THEN
        PERFORM app.keep_for_regression(image, made, wanted);
    END IF;
    RETURN made;
END
$$;

-- Puts an image before the moderators, again if need be.
CREATE OR REPLACE FUNCTION app.queue_image(image app.images, its_queue text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    verdict app.verdicts := app.current_verdict(image.id);
BEGIN
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
    shown moderation.review_queue;
BEGIN
    UPDATE app.reviews r SET claimed_until = ends WHERE r.image_id = ANY (taken);
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'expired'
    WHERE c.image_id = ANY (taken) AND c.closed_at IS NULL;
    INSERT INTO app.claims (image_id, moderator, queue, since, until)
    SELECT r.image_id, name, r.queue, clock_timestamp(), ends
    FROM app.reviews r WHERE r.image_id = ANY (taken);
    FOR one IN SELECT * FROM app.reviews r WHERE r.image_id = ANY (taken) LOOP
        PERFORM app.audit('claim', one.image_id, one.queue, jsonb_build_object('until', ends)
            || app.what_was_seen(one.image_id, one.queue = 'audit' AND NOT EXISTS (
                SELECT FROM app.audit_log a WHERE a.image_id = one.image_id AND a.actor = name
                AND (a.detail ? 'saw' OR a.action IN ('decide', 'overturn', 'undo', 'opinion'))
            )));
    END LOOP;
    RETURN QUERY SELECT * FROM app.claimed(taken);
END
$$;

-- Rows of the queue that the caller holds, as far as they may know them.
CREATE OR REPLACE FUNCTION app.claimed(images uuid[]) RETURNS SETOF moderation.review_queue
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    shown moderation.review_queue;
BEGIN
    FOR shown IN
        SELECT * FROM moderation.review_queue q WHERE q.image_id = ANY (images) ORDER BY q.rank_at
    LOOP
        IF app.is_blind(shown.image_id) THEN
            shown.queue := NULL;
            shown.uncertainty := NULL;
            shown.reach := NULL;
            shown.rank_at := NULL;
            shown.verdict_id := NULL;
            shown.label := NULL;
            shown.score := NULL;
            shown.tier := NULL;
            shown.held := NULL;
            shown.operating_point := NULL;
            shown.model_version := NULL;
            shown.policy_id := NULL;
            shown.evidence_url := NULL;
            shown.inapplicable_reason := NULL;
            shown.distance := NULL;
            shown.distance_words := NULL;
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
          -- Skipped by the caller.
          AND (
            SELECT s.created_at FROM app.skips s
            WHERE s.image_id = r.image_id AND s.moderator = who.moderator
          ) IS NULL
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

CREATE OR REPLACE FUNCTION moderation.decide(
    image uuid, decision text, reason text, note text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images := app.image_in_turn(app.me(), image);
    review app.reviews;
    holder text;
    last app.decisions := app.last_decision(image);
BEGIN
    PERFORM app.check_reason(decision, reason);
    SELECT * INTO review FROM app.reviews r WHERE r.image_id = image FOR UPDATE;
    SELECT c.moderator INTO holder FROM app.claims c
    WHERE c.image_id = image AND c.closed_at IS NULL AND c.until > clock_timestamp();
    IF holder <> app.caller() THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is claimed by ' || holder;
    END IF;
    IF last.decision <> decide.decision THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' was decided ' || last.decision || ' by '
                || last.moderator,
            HINT = 'Another decision is an overturn: moderation.overturn or close_appeal.';
    END IF;
    IF last.moderator = app.caller() THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'you have decided image ' || image || ' already',
            HINT = 'A second opinion must be another person''s.';
    END IF;
    IF last.id IS NULL THEN
        PERFORM app.refuse_part(image, app.caller());
    END IF;
    RETURN app.record_decision(
        found_image, decision, reason, note,
        CASE WHEN review.closed_at IS NULL THEN coalesce(review.queue, 'requested')
             ELSE 'requested' END,
        NULL
    );
END
$$;

CREATE OR REPLACE FUNCTION moderation.overturn(
    image uuid, decision text, reason text, note text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
    last app.decisions := app.last_decision(image);
BEGIN
    PERFORM app.check_reason(decision, reason);
    IF last.id IS NULL OR last.decision = overturn.decision THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'there is no other decision on image ' || image || ' to overturn';
    END IF;
    IF NOT who.lead AND last.moderator <> app.caller() THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'only a lead overturns what somebody else decided';
    END IF;
    PERFORM app.refuse_part(image, who.moderator);
    RETURN app.record_decision(found_image, decision, reason, note, 'requested', last.id);
END
$$;

-- The caller's own last decision, overturned before anybody acted on it.
CREATE OR REPLACE FUNCTION moderation.undo(
    image uuid, decision text, reason text, note text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
    last app.decisions := app.last_decision(image);
BEGIN
    PERFORM app.check_reason(decision, reason);
    IF last.moderator IS DISTINCT FROM who.moderator
        OR last.created_at < clock_timestamp() - interval '5 minutes'
    THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' has no decision of yours from the last 5 minutes',
            HINT = 'Later, moderation.overturn replaces a decision.';
    END IF;
    IF EXISTS (SELECT FROM app.appeals a WHERE a.decision_id = last.id AND a.image_id = image) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'your decision on image ' || image || ' is part of an appeal, and stands';
    END IF;
    IF (last.decision, last.reason_code, last.note)
        IS NOT DISTINCT FROM (undo.decision, undo.reason, left(undo.note, 4000))
    THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'that is what you decided on image ' || image;
    END IF;
    RETURN app.record_decision(
        found_image, decision, reason, note, last.why_reviewed, last.id, last
    );
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

CREATE OR REPLACE FUNCTION moderation.open_appeal(image uuid, note text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images := app.image_in_turn(app.me(), image);
    last app.decisions := app.last_decision(image);
    appeal uuid := gen_random_uuid();
BEGIN
    IF (app.open_appeal_of(image)).id IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' has an open appeal already';
    END IF;
    INSERT INTO app.appeals (appeal_id, image_id, decision_id, event, actor, note, created_at)
    VALUES (
        appeal, image, last.id, 'opened', app.caller(), left(note, 4000), clock_timestamp()
    );
    PERFORM app.queue_image(found_image, 'appeal');
    PERFORM app.audit('open_appeal', image, NULL, jsonb_build_object(
        'appeal_id', appeal, 'saw', app.what_is_shown(image)
    ));
    PERFORM app.emit('appeal.opened', image, jsonb_build_object(
        'source', found_image.source, 'appeal_id', appeal
    ));
    RETURN appeal;
END
$$;

CREATE OR REPLACE FUNCTION moderation.close_appeal(
    appeal uuid, outcome text, reason text DEFAULT NULL, note text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    opened app.appeals;
    who app.moderators := app.me();
    found_image app.images;
    appealed app.decisions;
    last app.decisions;
    holder text;
    wanted text;
    made bigint;
BEGIN
    SELECT * INTO opened FROM app.appeals a WHERE a.appeal_id = appeal AND a.event = 'opened';
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'no_data_found',
            MESSAGE = 'no appeal ' || coalesce(appeal::text, 'is named');
    END IF;
    found_image := app.image_in_turn(who, opened.image_id);
    IF outcome IS NULL OR outcome NOT IN ('upheld', 'overturned', 'dropped') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'an appeal is upheld (the label stays), overturned or dropped';
    END IF;
    IF EXISTS (
        SELECT FROM app.appeals a WHERE a.appeal_id = appeal AND a.event <> 'opened'
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'appeal ' || appeal || ' is closed';
    END IF;
    IF outcome <> 'dropped' AND app.is_party(opened, who.moderator) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'an appeal is closed by somebody other than who decided the image';
    END IF;
    last := app.last_decision(found_image.id);
    SELECT * INTO appealed FROM app.decisions d WHERE d.id = opened.decision_id;
    SELECT c.moderator INTO holder FROM app.claims c
    WHERE c.image_id = found_image.id AND c.closed_at IS NULL AND c.until > clock_timestamp();
    IF holder <> app.caller() THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || found_image.id || ' is claimed by ' || holder;
    END IF;
    IF outcome = 'overturned' THEN
        PERFORM app.refuse_part(found_image.id, who.moderator);
        wanted := coalesce(
            appealed.decision, (app.current_verdict(found_image.id)).label, 'generated'
        );
        wanted := CASE wanted WHEN 'real' THEN 'generated' ELSE 'real' END;
    END IF;
    -- Somebody may have overturned what was appealed against meanwhile.
    IF wanted IS DISTINCT FROM last.decision AND wanted IS NOT NULL THEN
        PERFORM app.check_reason(wanted, reason);
        made := app.record_decision(found_image, wanted, reason, note, 'appeal', last.id);
    ELSE
        UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'decided'
        WHERE c.image_id = found_image.id AND c.closed_at IS NULL;
        UPDATE app.reviews r SET closed_at = clock_timestamp(), claimed_until = NULL
        WHERE r.image_id = found_image.id AND r.closed_at IS NULL;
    END IF;
    INSERT INTO app.appeals (appeal_id, image_id, decision_id, event, actor, note, created_at)
    VALUES (
        appeal, found_image.id, coalesce(made, last.id), outcome, who.moderator,
        left(note, 4000), clock_timestamp()
    );
    PERFORM app.audit('close_appeal', found_image.id, reason, jsonb_build_object(
        'appeal_id', appeal, 'outcome', outcome, 'saw', app.what_is_shown(found_image.id)
    ));
    PERFORM app.emit('appeal.closed', found_image.id, jsonb_build_object(
        'source', found_image.source, 'appeal_id', appeal, 'outcome', outcome
    ));
    RETURN made;
END
$$;

-- The image for a second opinion: neither verdict, score, map nor queue.
CREATE OR REPLACE FUNCTION moderation.look_blind(image uuid) RETURNS TABLE (
    image_id uuid, source text, format text, width bigint, height bigint,
    uploaded_at timestamptz, image_url text, blind boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images := app.seen_image(app.me(), image);
BEGIN
    PERFORM app.audit('look_blind', image, NULL, '{"blind": true}');
    RETURN QUERY
        SELECT found_image.id, found_image.source, found_image.format, found_image.width,
            found_image.height, coalesce(found_image.uploaded_at, found_image.created_at),
            CASE WHEN found_image.object_removed_at IS NULL THEN moderation.address(
                (SELECT c.value FROM app.config c WHERE c.name = 'image_url'),
                found_image.id, found_image.bucket, found_image.key
            ) END,
            app.is_blind(found_image.id);
END
$$;

-- What a page needs to open the picture and the error map. Each call is an opening, and audited.
CREATE OR REPLACE FUNCTION moderation.open_image(image uuid) RETURNS TABLE (
    image_id uuid, bucket text, key text, version_id text, etag text, format text, width bigint,
    height bigint, size_bytes bigint, frame bigint, evidence_uri text,
    original_removed_at timestamptz, blind boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    i app.images := app.seen_image(app.me(), image);
    is_blind boolean := app.is_blind(image);
    verdict app.verdicts := app.current_verdict(image);
BEGIN
    PERFORM app.audit('open_image', image, NULL, app.what_was_seen(image, is_blind));
    IF is_blind THEN
        verdict.evidence_uri := NULL;
    END IF;
    IF i.object_removed_at IS NOT NULL OR i.erased_at IS NOT NULL THEN
        i.bucket := NULL;
        i.key := NULL;
        i.version_id := NULL;
        i.etag := NULL;
    END IF;
    RETURN QUERY SELECT i.id, i.bucket, i.key, i.version_id, i.etag, i.format, i.width, i.height,
        i.size_bytes, verdict.frame::bigint, verdict.evidence_uri,
        coalesce(i.object_removed_at, i.erased_at), is_blind;
END
$$;

CREATE OR REPLACE FUNCTION moderation.opinion(
    image uuid, decision text, reason text, note text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
    shown app.verdicts := app.current_verdict(image);
    is_blind boolean := app.is_blind(image);
    given bigint;
BEGIN
    PERFORM app.check_reason(decision, reason);
    IF EXISTS (
        SELECT FROM app.decisions d WHERE d.image_id = image AND d.moderator = who.moderator
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'you have decided image ' || image || ' yourself',
            HINT = 'A second opinion must be another person''s.';
    END IF;
    INSERT INTO app.opinions (
        image_id, moderator, decision, reason_code, note, verdict_id, blind, created_at
    ) VALUES (
        found_image.id, who.moderator, opinion.decision, reason, left(opinion.note, 4000),
        shown.id, is_blind, clock_timestamp()
    )
    ON CONFLICT DO NOTHING
    RETURNING id INTO given;
    IF given IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'you have given your opinion on image ' || image || ' already';
    END IF;
    PERFORM app.audit('opinion', image, reason, jsonb_build_object(
        'opinion_id', given, 'decision', opinion.decision
    ) || app.what_was_seen(image, is_blind));
    RETURN given;
END
$$;

CREATE OR REPLACE FUNCTION moderation.similar_images(
    image uuid, within integer DEFAULT 31, most integer DEFAULT 50
) RETURNS TABLE (
    image_id uuid, distance integer, source text, state text, uploaded_at timestamptz,
    label text, score float8, decision text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    asked app.images := app.seen_image(who, image);
    wanted bit(256) := ('x' || encode(asked.pdq, 'hex'))::bit(256);
    probes integer[];
BEGIN
    IF within IS NULL OR within NOT BETWEEN 0 AND 31 OR most IS NULL
        OR most NOT BETWEEN 1 AND 1000
    THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the distance is 0 to 31 bits of 256, the count 1 to 1000';
    END IF;
    PERFORM app.audit('similar_images', image, NULL, jsonb_build_object('within', within));
    SELECT array_agg(DISTINCT chunk # flip) INTO probes
    FROM app.near_duplicate_keys k, unnest(k.chunks) chunk,
         (SELECT 0 UNION ALL SELECT 1 << place FROM generate_series(0, 15) place) flips (flip)
    WHERE k.image_id = image;
    RETURN QUERY
        SELECT i.id, near.bits, i.source, i.state, i.uploaded_at, v.label, v.score, d.decision
        FROM app.near_duplicate_keys k
        JOIN app.images i ON i.id = k.image_id
        CROSS JOIN LATERAL (
            SELECT bit_count(('x' || encode(i.pdq, 'hex'))::bit(256) # wanted)::integer
        ) near (bits)
        CROSS JOIN LATERAL app.current_verdict(i.id) v
        CROSS JOIN LATERAL app.last_decision(i.id) d
        WHERE k.chunks && probes AND i.id <> image AND near.bits <= within
          AND (who.every_source OR i.source = ANY (who.sources))
        ORDER BY near.bits, i.created_at DESC
        LIMIT most;
END
$$;

CREATE OR REPLACE FUNCTION moderation.place_hold(image uuid, reason text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
    standing app.legal_holds;
    placed bigint;
BEGIN
    IF NOT who.lead OR coalesce(trim(reason), '') = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'a legal hold is placed by a lead, with a reason';
    END IF;
    -- Whoever removes an image's object holds its row meanwhile, and looks for holds before.
    PERFORM FROM app.images i WHERE i.id = found_image.id FOR NO KEY UPDATE;
    -- A second one that did nothing would end with the first, and nobody would know.
    SELECT * INTO standing FROM app.legal_holds h
    WHERE h.image_id = found_image.id AND h.lifted_at IS NULL;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is under a legal hold already, by '
                || standing.placed_by || ': ' || standing.reason;
    END IF;
    IF EXISTS (
        SELECT FROM app.erasures e
        WHERE e.image_id = found_image.id AND e.objects_done_at IS NOT NULL
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is deleted: there is nothing left to hold';
    END IF;
    INSERT INTO app.legal_holds (image_id, reason, placed_by)
    VALUES (found_image.id, reason, app.caller())
    RETURNING id INTO placed;
    PERFORM app.audit('place_hold', image, reason, jsonb_build_object('hold_id', placed));
    RETURN placed;
END
$$;

CREATE OR REPLACE FUNCTION moderation.lift_hold(image uuid, reason text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
BEGIN
    IF NOT who.lead OR coalesce(trim(reason), '') = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'a legal hold is lifted by a lead, with a reason';
    END IF;
    UPDATE app.legal_holds h SET lifted_at = clock_timestamp(), lifted_by = app.caller()
    WHERE h.image_id = found_image.id AND h.lifted_at IS NULL;
    IF FOUND THEN
        PERFORM app.audit('lift_hold', image, reason, '{}');
    END IF;
    RETURN FOUND;
END
$$;

CREATE OR REPLACE FUNCTION moderation.request_erasure(image uuid, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    found_image app.images := app.image_in_turn(who, image);
BEGIN
    IF NOT who.lead OR coalesce(trim(reason), '') = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'an erasure is requested by a lead, with a reason';
    END IF;
    IF app.is_held(found_image.id) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is under a legal hold';
    END IF;
    INSERT INTO app.erasures (image_id, reason, requested_by)
    VALUES (found_image.id, reason, app.caller())
    ON CONFLICT DO NOTHING;
    PERFORM app.audit('request_erasure', image, reason, '{}');
END
$$;

-- Recall over all of the caller's sources: strata are source, policy and week, each with its own
-- rate of misses (Cochran, "Sampling Techniques", 3rd ed., 5.3); strata without an audited image
-- take the others' rate, and `uncovered` says what share of unflagged uploads that is.
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
    WITH seen AS (
        SELECT v.model_version AS version, v.tier, i.source, v.policy_id,
               date_trunc('week', v.scored_at, 'UTC') AS week,
               CASE WHEN v.tier <> 'allow' OR r.audit_share IS NOT NULL THEN d.decision END
                   AS decision
        FROM app.verdicts v
        JOIN app.images i ON i.id = v.image_id
        LEFT JOIN app.reviews r ON r.image_id = v.image_id
        LEFT JOIN LATERAL (
            SELECT x.decision FROM app.decisions x
            WHERE x.image_id = v.image_id AND r.image_id IS NOT NULL ORDER BY x.id DESC LIMIT 1
        ) d ON true
        WHERE v.role = 'champion' AND v.tier IS NOT NULL AND v.scored_at >= since
          AND (model IS NULL OR v.model_version = model)
          AND (who.every_source OR i.source = ANY (who.sources))
    ), strata AS (
        SELECT s.version, s.tier = 'allow' AS passed, count(*)::float8 AS total,
               count(s.decision)::float8 AS n,
               count(*) FILTER (WHERE s.decision = 'generated')::float8 AS hits
        FROM seen s
        GROUP BY s.version, s.source, s.policy_id, s.week, s.tier
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
