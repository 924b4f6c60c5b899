-- Appeals, and who may close them and change their outcome.

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

CREATE OR REPLACE FUNCTION app.add_appeal(found_image app.images, by text, note text)
RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    last app.decisions := app.last_decision(found_image.id);
    appeal uuid := gen_random_uuid();
BEGIN
    IF (app.open_appeal_of(found_image.id)).id IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'image ' || found_image.id || ' has an open appeal already';
    END IF;
    INSERT INTO app.appeals (appeal_id, image_id, decision_id, event, actor, note, created_at)
    VALUES (appeal, found_image.id, last.id, 'opened', by, left(note, 4000), clock_timestamp());
    PERFORM app.queue_image(found_image, 'appeal');
    PERFORM app.audit('open_appeal', found_image.id, NULL, jsonb_build_object(
        'appeal_id', appeal, 'by', by, 'saw', app.what_is_shown(found_image.id)
    ));
    PERFORM app.emit('appeal.opened', found_image.id, jsonb_build_object(
        'source', found_image.source, 'appeal_id', appeal
    ));
    RETURN appeal;
END
$$;

CREATE OR REPLACE FUNCTION moderation.open_appeal(image uuid, note text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    RETURN app.add_appeal(app.image_in_turn(app.me(), image), app.caller(), note);
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
