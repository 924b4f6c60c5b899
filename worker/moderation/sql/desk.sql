-- What a moderator's desk shows beside one image, each bounded and by an index. Every function runs
-- as the owner and limits itself to the caller's sources.

CREATE OR REPLACE FUNCTION moderation.image_facts(image uuid) RETURNS TABLE (
    image_id uuid, source text, uploader text, uploaded_at timestamptz, state text, state_reason text,
    format text, width bigint, height bigint, size_bytes bigint, sha256 text,
    original_removed_at timestamptz, queue text, queued_at timestamptz, claimed_by text,
    claimed_until timestamptz, claimed_since timestamptz, decision text, decision_id bigint,
    decision_by text, decision_at timestamptz, open_appeal uuid, held_since timestamptz,
    blind boolean, evidence_uri text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    i app.images := app.seen_image(app.me(), image);
    last app.decisions := app.last_decision(image);
    is_blind boolean := app.is_blind(image);
BEGIN
    RETURN QUERY
        SELECT i.id, i.source, i.uploader, coalesce(i.uploaded_at, i.created_at), i.state, i.reason,
               i.format, i.width, i.height, i.size_bytes::bigint, i.sha256, i.object_removed_at,
               r.queue, r.queued_at, c.moderator, c.until, c.since, last.decision, last.id,
               last.moderator, last.created_at, o.appeal_id, l.placed_at,
               is_blind,
               CASE WHEN NOT is_blind THEN (app.current_verdict(image)).evidence_uri END
        FROM (SELECT) one
        LEFT JOIN app.reviews r ON r.image_id = image AND r.closed_at IS NULL
        LEFT JOIN app.claims c
            ON c.image_id = image AND c.closed_at IS NULL AND c.until > clock_timestamp()
        LEFT JOIN app.appeals o ON o.image_id = image AND o.event = 'opened' AND NOT EXISTS (
            SELECT FROM app.appeals x WHERE x.appeal_id = o.appeal_id AND x.event <> 'opened'
        )
        LEFT JOIN app.legal_holds l ON l.image_id = image AND l.lifted_at IS NULL;
END
$$;

-- What the caller looks at now, the longest first.
CREATE OR REPLACE FUNCTION moderation.my_claims() RETURNS TABLE (
    image_id uuid, queue text, since timestamptz, until timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
BEGIN
    RETURN QUERY
        SELECT c.image_id, c.queue, c.since, c.until
        FROM app.claims c JOIN app.images i ON i.id = c.image_id
        WHERE c.closed_at IS NULL AND c.until > clock_timestamp() AND c.moderator = who.moderator
          AND (who.every_source OR i.source = ANY (who.sources))
        ORDER BY c.since, c.id;
END
$$;

-- How many wait, up to `most` a cell, and since when, by queue and source. Cells are found by jumps
-- in the index, so that the answer costs as much with millions of open reviews as with thousands.
CREATE OR REPLACE FUNCTION moderation.queue_summary(most integer DEFAULT 1000) RETURNS TABLE (
    queue text, source text, waiting bigint, oldest timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    who app.moderators := app.me();
BEGIN
    RETURN QUERY
        WITH RECURSIVE cells AS (
            (
                SELECT r.queue, r.source FROM app.reviews r WHERE r.closed_at IS NULL
                ORDER BY r.queue, r.source LIMIT 1
            )
            UNION ALL
            SELECT n.queue, n.source FROM cells c CROSS JOIN LATERAL (
                SELECT r.queue, r.source FROM app.reviews r
                WHERE r.closed_at IS NULL AND (r.queue, r.source) > (c.queue, c.source)
                ORDER BY r.queue, r.source LIMIT 1
            ) n
        )
        SELECT c.queue, c.source, n.waiting, (
            SELECT r.queued_at FROM app.reviews r
            WHERE r.closed_at IS NULL AND r.queue = c.queue AND r.source = c.source
            ORDER BY r.queue, r.source, r.queued_at LIMIT 1
        )
        FROM cells c CROSS JOIN LATERAL (
            SELECT count(*) AS waiting FROM (
                SELECT FROM app.reviews r
                WHERE r.closed_at IS NULL AND r.queue = c.queue AND r.source = c.source
                LIMIT most
            ) counted
        ) n
        WHERE who.every_source OR c.source = ANY (who.sources)
        ORDER BY c.queue, c.source;
END
$$;

-- The newest other uploads of whoever uploaded an image, at its source: names are a platform's own.
CREATE OR REPLACE FUNCTION moderation.uploads_beside(image uuid, most integer DEFAULT 10)
RETURNS TABLE (
    image_id uuid, uploaded_at timestamptz, state text, label text, score float8, decision text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    asked app.images := app.seen_image(app.me(), image);
BEGIN
    IF most IS NULL OR most NOT BETWEEN 1 AND 100 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'ask for between 1 and 100 uploads';
    END IF;
    RETURN QUERY
        SELECT i.id, coalesce(i.uploaded_at, i.created_at), i.state, v.label, v.score, d.decision
        FROM (
            SELECT x.* FROM app.images x
            WHERE x.uploader = asked.uploader AND x.source = asked.source AND x.id <> asked.id
            ORDER BY x.created_at DESC LIMIT most
        ) i
        CROSS JOIN LATERAL app.current_verdict(i.id) v
        CROSS JOIN LATERAL app.last_decision(i.id) d
        ORDER BY i.created_at DESC;
END
$$;
