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
