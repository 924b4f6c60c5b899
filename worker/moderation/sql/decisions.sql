-- Decisions, their overturns and second opinions: what people say of an image.

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

-- The rows that tell of a decision of a moment ago, locked, found by the two indexes of the outbox.
CREATE OR REPLACE FUNCTION app.outbox_of(told app.decisions) RETURNS SETOF app.outbox
LANGUAGE sql SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT o.* FROM app.outbox o
    WHERE o.topic = 'decision' AND (o.payload ->> 'decision_id')::bigint = told.id
      AND (
        (o.delivered_at IS NULL AND o.dead_at IS NULL AND o.next_attempt_at >= told.created_at)
        OR ((o.delivered_at IS NOT NULL OR o.dead_at IS NOT NULL)
            AND coalesce(o.delivered_at, o.dead_at) >= told.created_at)
      )
    ORDER BY o.id
    FOR UPDATE
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
    unsent jsonb;
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
    -- An undone decision that has not left yet never leaves, and no receiver hears of its id. An
    -- endpoint that is switched off has its row among the dead, which somebody may replay. One
    -- endpoint that heard of it hears of what takes its place, and then all do.
    IF undone.id IS NOT NULL THEN
        PERFORM app.outbox_of(undone);
        WITH rows AS MATERIALIZED (
            SELECT * FROM app.outbox_of(undone)
        ), gone AS (
            DELETE FROM app.outbox o
            WHERE o.id IN (SELECT r.id FROM rows r) AND NOT EXISTS (
                SELECT FROM rows r WHERE r.attempts > 0 OR r.delivered_at IS NOT NULL
            )
            RETURNING o.payload
        )
        SELECT g.payload INTO unsent FROM gone g LIMIT 1;
        IF FOUND THEN
            told := unsent -> 'overturns';
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
