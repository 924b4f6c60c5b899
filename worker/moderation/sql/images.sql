-- What else is done with one image: opening it, its neighbours, holds and erasures.

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

-- Images that look alike. `quickly` probes a seventeenth as much: it finds all that differ in at most 15
-- bits, which leaves one of the sixteen chunks as it is, and most of the others.
DROP FUNCTION IF EXISTS moderation.similar_images(uuid, integer, integer);
CREATE OR REPLACE FUNCTION moderation.similar_images(
    image uuid, within integer DEFAULT 31, most integer DEFAULT 50, quickly boolean DEFAULT false
) RETURNS TABLE (
    image_id uuid, distance integer, source text, state text, uploaded_at timestamptz,
    label text, score float8, decision text
)
LANGUAGE plpgsql SECURITY DEFINER
-- Of so many probes the planner expects most of the table to match, and would read all of it.
SET enable_seqscan = off
SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    asked app.images := app.seen_image(who, image);
    wanted bit(256) := ('x' || encode(asked.pdq, 'hex'))::bit(256);
    probes integer[];
    candidates uuid[];
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
    WHERE k.image_id = image AND (flip = 0 OR quickly IS NOT TRUE);
    -- Probe by probe: asked for all at once, the index weighs each of them for every row it finds.
    candidates := ARRAY(
        SELECT DISTINCT near.image_id
        FROM unnest(probes) probe
        CROSS JOIN LATERAL (
            SELECT k.image_id FROM app.near_duplicate_keys k WHERE k.chunks @> ARRAY[probe] OFFSET 0
        ) near
        WHERE near.image_id <> image
    );
    RETURN QUERY
        SELECT i.id, near.bits, i.source, i.state, i.uploaded_at, v.label, v.score, d.decision
        FROM unnest(candidates) candidate (id)
        JOIN app.images i ON i.id = candidate.id
        CROSS JOIN LATERAL (
            SELECT bit_count(('x' || encode(i.pdq, 'hex'))::bit(256) # wanted)::integer
        ) near (bits)
        CROSS JOIN LATERAL app.current_verdict(i.id) v
        CROSS JOIN LATERAL app.last_decision(i.id) d
        WHERE near.bits <= within AND (who.every_source OR i.source = ANY (who.sources))
        ORDER BY near.bits, i.created_at DESC
        LIMIT most;
END
$$;

-- What else the uploader of an image sent to sources that the caller sees, the newest first.
CREATE OR REPLACE FUNCTION moderation.same_uploader(image uuid, most integer DEFAULT 10)
RETURNS TABLE (
    image_id uuid, source text, state text, uploaded_at timestamptz, label text, score float8,
    distance float8, tier text, decision text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
    asked app.images := app.seen_image(who, image);
BEGIN
    IF most IS NULL OR most NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the count is 1 to 1000';
    END IF;
    RETURN QUERY
        SELECT i.id, i.source, i.state, coalesce(i.uploaded_at, i.created_at), v.label, v.score,
            v.distance, v.tier, d.decision
        FROM (
            SELECT * FROM app.images x
            WHERE x.uploader = asked.uploader AND x.id <> asked.id
              AND (who.every_source OR x.source = ANY (who.sources))
            ORDER BY x.created_at DESC
            LIMIT most
        ) i
        CROSS JOIN LATERAL app.current_verdict(i.id) v
        CROSS JOIN LATERAL app.last_decision(i.id) d
        ORDER BY i.created_at DESC;
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
