-- What a moderator may do. Every function runs as the owner, knows the caller by SESSION_USER, asks
-- for the caller's right to the image's source and leaves a row in the audit.

CREATE OR REPLACE FUNCTION app.me() RETURNS app.moderators
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators;
BEGIN
    SELECT * INTO who FROM app.moderators m WHERE m.moderator = SESSION_USER;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = SESSION_USER || ' is not a moderator',
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
    INSERT INTO app.audit_log (action, image_id, reason, detail)
    VALUES (doing, image, why, jsonb_strip_nulls(detail))
$$;

CREATE OR REPLACE FUNCTION app.what_is_shown(image uuid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT jsonb_build_object(
        'verdict_id', v.id, 'label', v.label, 'score', v.score, 'tier', v.tier,
        'model_version', v.model_version, 'policy_id', v.policy_id
    )
    FROM app.current_verdict(image) v
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

CREATE OR REPLACE FUNCTION app.record_decision(
    image app.images, wanted text, reason text, note text, why text, overturned bigint
) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    shown app.verdicts := app.current_verdict(image.id);
    claim app.claims;
    made bigint;
BEGIN
    -- Closing the caller's claim; the time to decision is measured from it.
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'decided'
    WHERE c.image_id = image.id AND c.closed_at IS NULL AND c.moderator = SESSION_USER
    RETURNING * INTO claim;
    UPDATE app.reviews r SET closed_at = clock_timestamp(), claimed_until = NULL
    WHERE r.image_id = image.id AND r.closed_at IS NULL;
    INSERT INTO app.decisions (
        image_id, moderator, decision, reason_code, note, why_reviewed, verdict_id, overturns,
        claimed_at, created_at
    ) VALUES (
        image.id, SESSION_USER, wanted, reason, left(note, 4000), why, shown.id, overturned,
        claim.since, clock_timestamp()
    )
    RETURNING id INTO made;
    PERFORM app.audit(
        CASE WHEN overturned IS NULL THEN 'decide' ELSE 'overturn' END, image.id, reason,
        jsonb_build_object(
            'decision_id', made, 'decision', wanted, 'overturns', overturned, 'why', why,
            'saw', app.what_is_shown(image.id)
        )
    );
    PERFORM app.notify('unlatent_decisions', image.id::text);
    PERFORM app.emit('decision', image.id, jsonb_build_object(
        'source', image.source, 'decision_id', made, 'decision', wanted, 'reason', reason,
        'words', (SELECT c.words FROM app.reason_codes c WHERE c.code = reason),
        'overturns', overturned, 'label', shown.label, 'model_version', shown.model_version
    ));
    IF overturned IS NOT NULL OR why IN ('appeal', 'report') THEN
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

CREATE OR REPLACE FUNCTION moderation.claim_next(n integer DEFAULT 1, queue text DEFAULT NULL)
RETURNS SETOF moderation.review_queue
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    ends timestamptz := clock_timestamp() + make_interval(mins => coalesce(
        (SELECT c.value::integer FROM app.config c WHERE c.name = 'claim_minutes'), 15
    ));
    taken uuid[];
BEGIN
    IF n IS NULL OR n NOT BETWEEN 1 AND 100 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'claim between 1 and 100 images at a time';
    END IF;
    IF queue NOT IN ('flagged', 'unsure', 'audit', 'appeal', 'report', 'requested') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'no queue ' || quote_literal(queue),
            HINT = 'The queues are flagged, unsure, audit, appeal, report and requested.';
    END IF;
    -- The row itself says until when it is claimed: after a wait or a race, Postgres checks the
    -- newest version of the row again, but not what a subquery once said.
    WITH free AS (
        SELECT r.image_id FROM app.reviews r
        WHERE r.closed_at IS NULL
          AND (r.claimed_until IS NULL OR r.claimed_until < clock_timestamp())
          AND (claim_next.queue IS NULL OR r.queue = claim_next.queue)
          AND (who.every_source OR r.source = ANY (who.sources))
        ORDER BY r.rank_at
        LIMIT claim_next.n
        FOR UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE app.reviews r SET claimed_until = ends
        FROM free WHERE r.image_id = free.image_id
        RETURNING r.image_id
    )
    SELECT array_agg(c.image_id) INTO taken FROM claimed c;
    IF taken IS NULL THEN
        RETURN;
    END IF;
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'expired'
    WHERE c.image_id = ANY (taken) AND c.closed_at IS NULL;
    INSERT INTO app.claims (image_id, moderator, queue, since, until)
    SELECT r.image_id, SESSION_USER, r.queue, clock_timestamp(), ends
    FROM app.reviews r WHERE r.image_id = ANY (taken);
    INSERT INTO app.audit_log (action, image_id, reason, detail)
    SELECT 'claim', r.image_id, r.queue,
           jsonb_build_object('until', ends, 'saw', app.what_is_shown(r.image_id))
    FROM app.reviews r WHERE r.image_id = ANY (taken);
    RETURN QUERY
        SELECT q.* FROM moderation.review_queue q WHERE q.image_id = ANY (taken)
        ORDER BY q.rank_at;
END
$$;

CREATE OR REPLACE FUNCTION moderation.release(image uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images := app.image_in_turn(app.me(), image);
BEGIN
    UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'released'
    WHERE c.image_id = found_image.id AND c.closed_at IS NULL AND c.moderator = SESSION_USER;
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
    IF holder <> SESSION_USER THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is claimed by ' || holder;
    END IF;
    IF last.decision <> decide.decision THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' was decided ' || last.decision || ' by '
                || last.moderator,
            HINT = 'Another decision is an overturn: moderation.overturn or close_appeal.';
    END IF;
    IF last.moderator = SESSION_USER THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'you have decided image ' || image || ' already',
            HINT = 'A second opinion must be another person''s.';
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
    IF NOT who.lead AND last.moderator <> SESSION_USER THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'only a lead overturns what somebody else decided';
    END IF;
    RETURN app.record_decision(found_image, decision, reason, note, 'requested', last.id);
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
    IF EXISTS (
        SELECT FROM app.appeals o WHERE o.image_id = image AND o.event = 'opened'
        AND NOT EXISTS (
            SELECT FROM app.appeals c WHERE c.appeal_id = o.appeal_id AND c.event <> 'opened'
        )
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' has an open appeal already';
    END IF;
    INSERT INTO app.appeals (appeal_id, image_id, decision_id, event, actor, note, created_at)
    VALUES (
        appeal, image, last.id, 'opened', SESSION_USER, left(note, 4000), clock_timestamp()
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
    found_image app.images;
    appealed app.decisions;
    holder text;
    standing text;
    made bigint;
BEGIN
    SELECT * INTO opened FROM app.appeals a WHERE a.appeal_id = appeal AND a.event = 'opened';
    found_image := app.image_in_turn(app.me(), opened.image_id);
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
    appealed := app.last_decision(found_image.id);
    IF appealed.moderator = SESSION_USER AND outcome <> 'dropped' THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'an appeal is closed by somebody other than who decided the image';
    END IF;
    SELECT c.moderator INTO holder FROM app.claims c
    WHERE c.image_id = found_image.id AND c.closed_at IS NULL AND c.until > clock_timestamp();
    IF holder <> SESSION_USER THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || found_image.id || ' is claimed by ' || holder;
    END IF;
    IF outcome = 'overturned' THEN
        standing := coalesce(
            appealed.decision, (app.current_verdict(found_image.id)).label, 'generated'
        );
        standing := CASE standing WHEN 'real' THEN 'generated' ELSE 'real' END;
        PERFORM app.check_reason(standing, reason);
        made := app.record_decision(found_image, standing, reason, note, 'appeal', appealed.id);
    ELSE
        UPDATE app.claims c SET closed_at = clock_timestamp(), outcome = 'decided'
        WHERE c.image_id = found_image.id AND c.closed_at IS NULL;
        UPDATE app.reviews r SET closed_at = clock_timestamp(), claimed_until = NULL
        WHERE r.image_id = found_image.id AND r.closed_at IS NULL;
    END IF;
    INSERT INTO app.appeals (appeal_id, image_id, decision_id, event, actor, note, created_at)
    VALUES (
        appeal, found_image.id, coalesce(made, appealed.id), outcome, SESSION_USER,
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
    IF within IS NULL OR within NOT BETWEEN 0 AND 31 OR most NOT BETWEEN 1 AND 1000 THEN
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
    IF NOT who.lead OR reason IS NULL THEN
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
    INSERT INTO app.legal_holds (image_id, reason) VALUES (found_image.id, reason)
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
    IF NOT who.lead OR reason IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'a legal hold is lifted by a lead, with a reason';
    END IF;
    UPDATE app.legal_holds h SET lifted_at = clock_timestamp(), lifted_by = SESSION_USER
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
    IF NOT who.lead OR reason IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'an erasure is requested by a lead, with a reason';
    END IF;
    IF app.is_held(found_image.id) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || image || ' is under a legal hold';
    END IF;
    INSERT INTO app.erasures (image_id, reason) VALUES (found_image.id, reason)
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
