-- What a moderator sees. VISIBLE(source) becomes the predicate that limits a view to the sources of
-- whoever asks (worker/moderation/sql_files.py).
--
-- The views are security barriers: nothing that a caller writes runs on rows that are not theirs,
-- and a barrier's query is planned apart from the caller's ORDER BY and LIMIT. LATERAL with OFFSET 0
-- leaves the planner nested loops in the order of the outer index, which is what makes a first page
-- cheap at any size; the views come in the order in which they are read.

CREATE OR REPLACE VIEW moderation.verdicts WITH (security_barrier) AS
SELECT
    v.image_id, v.id AS verdict_id, i.source, i.uploader,
    coalesce(i.uploaded_at, i.created_at) AS uploaded_at, i.state, i.format, i.width, i.height,
    i.size_bytes, i.sha256,
    v.label, v.score, v.tier, v.held, v.operating_point, v.prior, v.decided_by AS decided_by_branch,
    v.branches, v.model_version, v.policy_id, v.scored_at,
    CASE
        WHEN v.tier IS NULL THEN NULL
        ELSE format('The detector says "%s"', v.label) || CASE
            WHEN v.inapplicable_reason IS NOT NULL OR v.distance IS NULL THEN '.'
            ELSE format(
                ': %s the point of accusation, from which on it says "generated" (distance %s).',
                moderation.distance_words(v.label, v.distance, NULL),
                to_char(v.distance, 'SGFM990.0')
            )
        END || CASE
            WHEN v.held
            THEN ' Automatic flagging is stopped for this source, so a person looks first.'
            WHEN v.tier = 'review' AND v.score < p.review
            THEN format(
                ' Policy %s would let its score pass, but the label alone asks for a person.',
                v.policy_id
            )
            ELSE format(
                ' Policy %s makes its tier %s.',
                v.policy_id, moderation.tier_words(v.tier, v.label)
            )
        END || CASE
            WHEN v.thresholds_hold THEN ''
            ELSE ' The thresholds were measured on files that another release read in another way:'
                ' their rate of false accusations is not known for this verdict.'
        END || coalesce(
            ' Nothing can be told of such an image (' || v.inapplicable_reason || ').', ''
        )
    END AS explanation,
    d.decision, d.moderator AS decision_by, d.reason_code AS decision_reason,
    d.created_at AS decision_at,
    o.exif_make, o.exif_model, o.exif_software, o.exif_taken_at, o.iptc_digital_source_type,
    o.iptc_asserts_ai, moderation.c2pa_state(o.c2pa_state, o.c2pa_problems) AS c2pa_state,
    o.c2pa_claim_generator, o.c2pa_asserts_ai,
    CASE WHEN i.object_removed_at IS NULL THEN moderation.address(
        (SELECT c.value FROM app.config c WHERE c.name = 'image_url'), i.id, i.bucket, i.key
    ) END AS image_url,
    moderation.address(
        (SELECT c.value FROM app.config c WHERE c.name = 'evidence_url'), i.id,
        split_part(v.evidence_uri, '/', 3), regexp_replace(v.evidence_uri, '^s3://[^/]*/', '')
    ) AS evidence_url,
    v.intake_version, v.thresholds_hold,
    v.inapplicable_reason, coalesce(o.declares_ai, o.iptc_asserts_ai OR o.c2pa_asserts_ai)
        AS declares_ai,
    o.declared_generator, o.declared_where,
    moderation.c2pa_signer_state(o.c2pa_signer_state, o.c2pa_state, o.c2pa_problems)
        AS c2pa_signer_state,
    o.c2pa_signer, o.c2pa_signed_at, o.c2pa_problems, o.c2pa_ingredients,
    i.object_removed_at AS original_removed_at, v.frame,
    v.distance, moderation.distance_words(v.label, v.distance, v.inapplicable_reason)
        AS distance_words,
    v.evidence_uri, v.tiles
FROM app.verdicts v
-- Not fenced off: who asks for an uploader or for a file's hash begins at the index of images.
JOIN app.images i ON i.id = v.image_id
LEFT JOIN LATERAL (SELECT * FROM app.policies x WHERE x.id = v.policy_id OFFSET 0) p ON true
LEFT JOIN LATERAL (SELECT * FROM app.provenance x WHERE x.image_id = v.image_id OFFSET 0) o ON true
LEFT JOIN LATERAL (
    SELECT * FROM app.decisions x WHERE x.image_id = v.image_id ORDER BY x.id DESC LIMIT 1
) d ON true
WHERE v.role = 'champion'
  -- The latest is no earlier than the latest. Said as "v.id =", the planner expects a single row to
  -- pass and sorts all there are instead of stopping after a page.
  AND (v.scored_at, v.id) >= (
    SELECT n.scored_at, n.id FROM app.verdicts n
    WHERE n.image_id = v.image_id AND n.role = 'champion'
    ORDER BY n.scored_at DESC, n.id DESC
    LIMIT 1
  )
  AND VISIBLE(i.source)
ORDER BY v.scored_at DESC, v.id DESC;

CREATE OR REPLACE VIEW moderation.review_queue WITH (security_barrier) AS
SELECT
    r.image_id, r.queue, r.source, r.uncertainty, r.reach, r.queued_at, r.rank_at,
    c.moderator AS claimed_by, r.claimed_until, r.verdict_id, v.label, v.score, v.tier, v.held,
    v.operating_point, v.model_version, v.policy_id, i.uploader,
    coalesce(i.uploaded_at, i.created_at) AS uploaded_at, i.format, i.width, i.height,
    o.exif_make, o.exif_model, o.exif_software, o.iptc_asserts_ai,
    moderation.c2pa_state(o.c2pa_state, o.c2pa_problems) AS c2pa_state, o.c2pa_asserts_ai,
    CASE WHEN i.object_removed_at IS NULL THEN moderation.address(
        (SELECT c.value FROM app.config c WHERE c.name = 'image_url'), i.id, i.bucket, i.key
    ) END AS image_url,
    moderation.address(
        (SELECT c.value FROM app.config c WHERE c.name = 'evidence_url'), i.id,
        split_part(v.evidence_uri, '/', 3), regexp_replace(v.evidence_uri, '^s3://[^/]*/', '')
    ) AS evidence_url,
    v.inapplicable_reason, coalesce(o.declares_ai, o.iptc_asserts_ai OR o.c2pa_asserts_ai)
        AS declares_ai,
    o.declared_generator,
    moderation.c2pa_signer_state(o.c2pa_signer_state, o.c2pa_state, o.c2pa_problems)
        AS c2pa_signer_state,
    i.object_removed_at AS original_removed_at,
    v.distance, moderation.distance_words(v.label, v.distance, v.inapplicable_reason)
        AS distance_words,
    v.evidence_uri, v.tiles
FROM app.reviews r
CROSS JOIN LATERAL (SELECT * FROM app.images x WHERE x.id = r.image_id OFFSET 0) i
LEFT JOIN LATERAL (SELECT * FROM app.verdicts x WHERE x.id = r.verdict_id OFFSET 0) v ON true
LEFT JOIN LATERAL (SELECT * FROM app.provenance x WHERE x.image_id = r.image_id OFFSET 0) o ON true
LEFT JOIN LATERAL (
    SELECT * FROM app.claims x
    WHERE x.image_id = r.image_id AND x.closed_at IS NULL AND x.until > now()
    OFFSET 0
) c ON true
WHERE r.closed_at IS NULL AND VISIBLE(r.source)
ORDER BY r.rank_at, r.image_id;

-- Counts alone, so that no image is looked up for them.
CREATE OR REPLACE VIEW moderation.queue_summary WITH (security_barrier) AS
SELECT r.queue, r.source, count(*) AS open_reviews, min(r.queued_at) AS oldest_review
FROM app.reviews r
WHERE r.closed_at IS NULL AND VISIBLE(r.source)
GROUP BY r.source, r.queue;

CREATE OR REPLACE VIEW moderation.image_history WITH (security_barrier) AS
SELECT h.image_id, i.source, h.at, h.event, h.actor, h.summary, h.detail
FROM (
    SELECT i.id AS image_id, i.created_at AS at, 1 AS step, 'upload' AS event, i.uploader AS actor,
           'uploaded from ' || i.source AS summary,
           jsonb_build_object('bucket', i.bucket, 'key', i.key, 'format', i.format,
               'width', i.width, 'height', i.height, 'sha256', i.sha256) AS detail
    FROM app.images i
    UNION ALL
    SELECT a.image_id, a.at, 9, 'state', a.actor,
           concat_ws(' ', a.from_state, '→', a.to_state, '(' || a.reason || ')'), a.detail
    FROM app.audit_log a WHERE a.action = 'state' AND a.from_state IS NOT NULL
    UNION ALL
    SELECT v.image_id, v.scored_at, 2, 'verdict', v.model_version,
           concat(
               v.label,
               ': ' || moderation.distance_words(v.label, v.distance, v.inapplicable_reason),
               ', ' || to_char(v.distance, 'SGFM990.0'),
               ' (' || coalesce(moderation.tier_words(v.tier, v.label), v.role) || ')'
           ),
           jsonb_build_object('verdict_id', v.id, 'label', v.label, 'score', v.score,
               'distance', v.distance, 'tier', v.tier, 'held', v.held, 'role', v.role, 'branches', v.branches,
               'operating_point', v.operating_point, 'policy_id', v.policy_id,
               'inapplicable_reason', v.inapplicable_reason)
    FROM app.verdicts v
    UNION ALL
    SELECT c.image_id, c.since, 3, 'claim', c.moderator, 'claimed from ' || c.queue,
           jsonb_build_object('until', c.until)
    FROM app.claims c
    UNION ALL
    SELECT c.image_id, c.closed_at, 4, 'claim closed', c.moderator, c.outcome, '{}'::jsonb
    FROM app.claims c WHERE c.closed_at IS NOT NULL
    UNION ALL
    SELECT s.image_id, s.created_at, 4, 'skip', s.moderator, coalesce(s.why, ''), '{}'::jsonb
    FROM app.skips s
    UNION ALL
    -- What an opinion says is for leads alone, in moderation.opinions.
    SELECT p.image_id, p.created_at, 5, 'opinion', p.moderator,
           CASE WHEN p.blind THEN 'a second opinion, blind' ELSE 'a second opinion' END,
           jsonb_build_object('opinion_id', p.id)
    FROM app.opinions p
    UNION ALL
    SELECT d.image_id, d.created_at, 5,
           CASE WHEN d.overturns IS NULL THEN 'decision' ELSE 'overturn' END, d.moderator,
           d.decision || ': ' || d.reason_code,
           jsonb_build_object('decision_id', d.id, 'decision', d.decision, 'why', d.why_reviewed,
               'overturns', d.overturns, 'verdict_id', d.verdict_id, 'note', d.note)
    FROM app.decisions d
    UNION ALL
    SELECT a.image_id, a.created_at, 6, 'appeal ' || a.event, a.actor, coalesce(a.note, ''),
           jsonb_build_object('appeal_id', a.appeal_id, 'decision_id', a.decision_id)
    FROM app.appeals a
    UNION ALL
    SELECT r.image_id, d.created_at, 7, 'regression corpus', NULL,
           'must score as ' || r.label || CASE WHEN r.pinned THEN ', pinned' ELSE '' END,
           -- The group by its first image of those that the caller may see: its name is the hash
           -- of a picture, which may be another source's.
           jsonb_build_object('decision_id', r.decision_id, 'pinned', r.pinned, 'group', (
               SELECT g.image_id FROM app.regression_items g
               CROSS JOIN LATERAL (SELECT * FROM app.images x WHERE x.id = g.image_id OFFSET 0) s
               WHERE g.group_key = r.group_key AND VISIBLE(s.source)
               ORDER BY g.id LIMIT 1
           ))
    FROM app.regression_items r
    CROSS JOIN LATERAL (SELECT * FROM app.decisions x WHERE x.id = r.decision_id OFFSET 0) d
    UNION ALL
    SELECT l.image_id, l.placed_at, 8, 'legal hold', l.placed_by, l.reason,
           jsonb_build_object('lifted_at', l.lifted_at, 'lifted_by', l.lifted_by)
    FROM app.legal_holds l
    UNION ALL
    SELECT a.image_id, a.at, 9, 'legal hold lifted', a.actor, a.reason, a.detail
    FROM app.audit_log a WHERE a.action = 'lift_hold'
    UNION ALL
    SELECT e.image_id, e.requested_at, 8, 'erasure requested', e.requested_by, e.reason,
           jsonb_build_object('objects_done_at', e.objects_done_at,
               'rows_done_at', e.rows_done_at, 'shards_done_at', e.shards_done_at)
    FROM app.erasures e
) h
CROSS JOIN LATERAL (SELECT * FROM app.images x WHERE x.id = h.image_id OFFSET 0) i
WHERE VISIBLE(i.source)
ORDER BY h.at, h.step;

CREATE OR REPLACE VIEW moderation.decisions WITH (security_barrier) AS
SELECT
    d.id AS decision_id, d.image_id, i.source, d.moderator, d.decision, d.reason_code, c.words,
    d.note, d.why_reviewed, d.overturns,
    (SELECT min(o.id) FROM app.decisions o WHERE o.overturns = d.id AND o.image_id = d.image_id)
        AS overturned_by,
    v.label, v.score, v.tier, v.model_version, d.claimed_at, d.created_at,
    extract(epoch FROM d.created_at - d.claimed_at)::float8 AS seconds_to_decision, d.blind,
    d.contradicts
FROM app.decisions d
CROSS JOIN LATERAL (SELECT * FROM app.images x WHERE x.id = d.image_id OFFSET 0) i
LEFT JOIN LATERAL (SELECT * FROM app.verdicts x WHERE x.id = d.verdict_id OFFSET 0) v ON true
LEFT JOIN LATERAL (
    SELECT * FROM app.reason_codes x WHERE x.code = d.reason_code OFFSET 0
) c ON true
WHERE VISIBLE(i.source)
ORDER BY d.id DESC;

-- Second opinions: one's own; for leads everybody's, for whoever still judges must not know them.
CREATE OR REPLACE VIEW moderation.opinions WITH (security_barrier) AS
SELECT
    o.id AS opinion_id, o.image_id, i.source, o.moderator, o.decision, o.reason_code, o.note,
    o.blind, o.created_at, d.id AS decision_id, d.decision AS decided, d.moderator AS decided_by,
    o.decision = d.decision AS agrees
FROM app.opinions o
JOIN app.images i ON i.id = o.image_id
LEFT JOIN LATERAL (
    SELECT * FROM app.decisions x WHERE x.image_id = o.image_id AND x.moderator <> o.moderator
    ORDER BY x.id DESC LIMIT 1
) d ON true
WHERE VISIBLE(i.source) AND (o.moderator = CALLER OR EXISTS (
    SELECT FROM app.moderators m WHERE m.moderator = CALLER AND m.lead
));

-- Cohen's kappa (Cohen, "A Coefficient of Agreement for Nominal Scales", 1960): agreement beyond
-- what the shares of the three answers on both sides would give by chance.
CREATE OR REPLACE VIEW moderation.agreement WITH (security_barrier) AS
WITH counted AS (
    SELECT
        o.source, o.blind, count(*) AS opinions, count(*) FILTER (WHERE o.agrees) AS agreed,
        (
            count(*) FILTER (WHERE o.decision = 'real')::float8
                * count(*) FILTER (WHERE o.decided = 'real')
            + count(*) FILTER (WHERE o.decision = 'generated')::float8
                * count(*) FILTER (WHERE o.decided = 'generated')
            + count(*) FILTER (WHERE o.decision = 'unsure')::float8
                * count(*) FILTER (WHERE o.decided = 'unsure')
        ) / count(*) ^ 2 AS by_chance
    FROM moderation.opinions o
    WHERE o.decision_id IS NOT NULL
    GROUP BY o.source, o.blind
)
SELECT
    c.source, c.blind, c.opinions, c.agreed, c.agreed::float8 / c.opinions AS agreement_rate,
    (c.agreed::float8 / c.opinions - c.by_chance) / nullif(1 - c.by_chance, 0) AS kappa
FROM counted c;

-- In two halves: whoever asks for open ones, or for the last that were closed, reads no others.
CREATE OR REPLACE VIEW moderation.appeals WITH (security_barrier) AS
SELECT
    o.appeal_id, o.image_id, i.source, 'open' AS status,
    o.created_at AS opened_at, o.actor AS opened_by, o.note,
    o.decision_id AS appealed_decision_id, d.moderator AS appealed_decision_by, d.decision,
    NULL::timestamptz AS closed_at, NULL::text AS closed_by, NULL::text AS closing_note
FROM app.appeals o
CROSS JOIN LATERAL (SELECT * FROM app.images x WHERE x.id = o.image_id OFFSET 0) i
LEFT JOIN LATERAL (SELECT * FROM app.decisions x WHERE x.id = o.decision_id OFFSET 0) d ON true
WHERE o.event = 'opened' AND VISIBLE(i.source) AND NOT EXISTS (
    SELECT FROM app.appeals c WHERE c.appeal_id = o.appeal_id AND c.event <> 'opened'
)
UNION ALL
(SELECT
    o.appeal_id, o.image_id, i.source, c.event, o.created_at, o.actor, o.note, o.decision_id,
    d.moderator, d.decision, c.created_at, c.actor, c.note
FROM app.appeals c
CROSS JOIN LATERAL (
    SELECT * FROM app.appeals x WHERE x.appeal_id = c.appeal_id AND x.event = 'opened' OFFSET 0
) o
CROSS JOIN LATERAL (SELECT * FROM app.images x WHERE x.id = o.image_id OFFSET 0) i
LEFT JOIN LATERAL (SELECT * FROM app.decisions x WHERE x.id = o.decision_id OFFSET 0) d ON true
WHERE c.event <> 'opened' AND VISIBLE(i.source)
ORDER BY c.created_at DESC);

CREATE OR REPLACE VIEW moderation.holds WITH (security_barrier) AS
SELECT
    l.id AS hold_id, l.image_id, i.source, l.reason, l.placed_by, l.placed_at, l.lifted_by,
    l.lifted_at
FROM app.legal_holds l
JOIN app.images i ON i.id = l.image_id
WHERE VISIBLE(i.source);

CREATE OR REPLACE VIEW moderation.model_quality WITH (security_barrier) AS
WITH cells AS (
    SELECT
        v.model_version, v.source, date_trunc('week', v.day::timestamp)::date AS week,
        sum(v.n)::bigint AS verdicts,
        coalesce(sum(v.n) FILTER (WHERE v.tier <> 'allow'), 0)::bigint AS flagged,
        coalesce(sum(v.n) FILTER (WHERE v.tier <> 'allow' AND v.decision IS NOT NULL), 0)::bigint AS flagged_decided,
        coalesce(sum(v.n) FILTER (WHERE v.tier <> 'allow' AND v.decision = 'generated'), 0)::bigint AS confirmed,
        coalesce(sum(v.n) FILTER (WHERE v.label = 'generated' AND v.decision <> 'unsure'), 0)::bigint AS generated_decided,
        coalesce(sum(v.n) FILTER (WHERE v.label = 'generated' AND v.decision = 'generated'), 0)::bigint AS generated_confirmed,
        coalesce(sum(v.n) FILTER (WHERE v.decision IS NOT NULL), 0)::bigint AS decided,
        coalesce(sum(v.n) FILTER (WHERE v.overturns), 0)::bigint AS overturned,
        coalesce(sum(v.n) FILTER (WHERE v.tier = 'allow'), 0)::bigint AS unflagged,
        coalesce(sum(v.n) FILTER (WHERE v.tier = 'allow' AND v.audited), 0)::bigint AS audited,
        coalesce(sum(v.n) FILTER (WHERE v.tier = 'allow' AND v.audited AND v.decision = 'generated'), 0)::bigint AS audited_generated
    FROM app.verdict_counts v
    WHERE VISIBLE(v.source)
    GROUP BY v.model_version, v.source, date_trunc('week', v.day::timestamp)
    HAVING sum(v.n) > 0
)
SELECT
    c.model_version, m.name AS model_name, c.source, c.week, c.verdicts, c.flagged,
    c.flagged_decided, c.confirmed, c.decided, c.overturned,
    c.generated_confirmed::float8 / nullif(c.generated_decided, 0) AS label_precision,
    c.overturned::float8 / nullif(c.decided, 0) AS overturn_rate,
    c.unflagged, c.audited, c.audited_generated,
    e.recall, e.low AS recall_low, e.high AS recall_high
FROM cells c
LEFT JOIN app.model_versions m ON m.digest = c.model_version
LEFT JOIN LATERAL moderation.recall_interval(
    c.flagged::float8,
    CASE WHEN c.flagged = 0 THEN 0 ELSE c.confirmed::float8 / nullif(c.flagged_decided, 0) END,
    moderation.effective_size(c.flagged_decided::float8, c.flagged::float8),
    c.unflagged::float8,
    CASE WHEN c.unflagged = 0 THEN 0 ELSE c.audited_generated::float8 / nullif(c.audited, 0) END,
    moderation.effective_size(c.audited::float8, c.unflagged::float8)
) e ON true;

CREATE OR REPLACE VIEW moderation.source_summary WITH (security_barrier) AS
SELECT
    s.source, s.uploads, s.waiting, s.failed, s.scored, s.flagged,
    s.flagged::float8 / nullif(s.scored, 0) AS flag_share,
    q.open_reviews, q.oldest_review, b.opened_at AS flagging_stopped_since, p.id AS policy_id,
    p.min_flag_share, p.max_flag_share
FROM (
    SELECT
        c.source, coalesce(c.uploads, 0) AS uploads, (
            SELECT count(*) FROM app.images i
            WHERE i.state = 'pending' AND i.source = c.source AND i.created_at >= c.since
        ) AS waiting,
        coalesce(c.failed, 0) AS failed, coalesce(v.scored, 0) AS scored,
        coalesce(v.flagged, 0) AS flagged
    FROM (
        SELECT x.source, sum(x.uploads)::bigint AS uploads, sum(x.failed)::bigint AS failed,
            ((now() AT TIME ZONE 'UTC')::date - 6)::timestamp AT TIME ZONE 'UTC' AS since
        FROM app.source_counts x
        WHERE x.day >= (now() AT TIME ZONE 'UTC')::date - 6 AND VISIBLE(x.source)
        GROUP BY x.source
    ) c
    LEFT JOIN (
        SELECT x.source, sum(x.n)::bigint AS scored,
            sum(x.n) FILTER (WHERE x.held OR x.tier IN ('flag', 'flag_high'))::bigint AS flagged
        FROM app.verdict_counts x
        WHERE x.day >= (now() AT TIME ZONE 'UTC')::date - 6 AND x.tier IS NOT NULL
        GROUP BY x.source
    ) v ON v.source = c.source
) s
CROSS JOIN LATERAL (
    SELECT count(*) AS open_reviews, min(r.queued_at) AS oldest_review
    FROM app.reviews r WHERE r.source = s.source AND r.closed_at IS NULL
) q
LEFT JOIN app.breakers b ON b.source = s.source AND b.closed_at IS NULL
LEFT JOIN LATERAL (
    SELECT * FROM app.policies x WHERE x.source = s.source OR x.source IS NULL
    ORDER BY x.source NULLS LAST, x.id DESC LIMIT 1
) p ON true;

CREATE OR REPLACE VIEW moderation.daily_summary WITH (security_barrier) AS
WITH counted AS (
    SELECT c.day, c.source, sum(c.uploads)::bigint AS uploads, sum(c.failed)::bigint AS failed,
           sum(c.decisions)::bigint AS decisions, sum(c.overturns)::bigint AS overturns,
           sum(c.appeals)::bigint AS appeals
    FROM app.source_counts c WHERE VISIBLE(c.source)
    GROUP BY c.day, c.source
), scored AS (
    SELECT c.day, c.source, sum(c.n)::bigint AS verdicts,
           sum(c.n) FILTER (WHERE c.label = 'generated')::bigint AS generated,
           sum(c.n) FILTER (WHERE c.label = 'unsure')::bigint AS unsure,
           sum(c.n) FILTER (WHERE c.tier IN ('flag', 'flag_high'))::bigint AS flagged,
           sum(c.n) FILTER (WHERE c.held)::bigint AS held
    FROM app.verdict_counts c WHERE VISIBLE(c.source)
    GROUP BY c.day, c.source
    HAVING sum(c.n) <> 0
), medians AS (
    SELECT m.day, m.source, m.seconds FROM app.decision_medians m WHERE VISIBLE(m.source)
    UNION ALL
    -- Days that are not closed yet. No decision is of tomorrow; without that end the planner expects a
    -- third of all decisions and reads the table.
    SELECT (d.created_at AT TIME ZONE 'UTC')::date, i.source,
           percentile_cont(0.5) WITHIN GROUP (
               ORDER BY extract(epoch FROM d.created_at - d.claimed_at)::float8
           )
    FROM app.decisions d JOIN app.images i ON i.id = d.image_id
    WHERE d.created_at >= (
        SELECT coalesce(max(m.day) + 1, '-infinity')::timestamp AT TIME ZONE 'UTC'
        FROM app.decision_medians m
    ) AND d.created_at < now() + interval '1 day' AND VISIBLE(i.source)
    GROUP BY 1, 2
)
SELECT
    day, source, coalesce(u.uploads, 0) AS uploads, coalesce(u.failed, 0) AS failed,
    coalesce(s.verdicts, 0) AS verdicts, coalesce(s.generated, 0) AS generated,
    coalesce(s.unsure, 0) AS unsure, coalesce(s.flagged, 0) AS flagged,
    coalesce(s.held, 0) AS held, coalesce(u.decisions, 0) AS decisions,
    coalesce(u.overturns, 0) AS overturns, coalesce(u.appeals, 0) AS appeals,
    m.seconds AS median_seconds_to_decision
FROM counted u
FULL JOIN scored s USING (day, source)
LEFT JOIN medians m USING (day, source);

CREATE OR REPLACE VIEW moderation.policies WITH (security_barrier) AS
SELECT
    p.id AS policy_id, p.source, p.review, p.flag, p.flag_high, p.audit_share, p.min_flag_share,
    p.max_flag_share, p.breaker_window, p.breaker_images, p.reason, p.created_by, p.created_at,
    p.id = (SELECT max(x.id) FROM app.policies x WHERE x.source IS NOT DISTINCT FROM p.source)
        AS in_force
FROM app.policies p
WHERE (p.source IS NULL AND EXISTS (
    SELECT FROM app.moderators m WHERE m.moderator = CALLER
)) OR VISIBLE(p.source);

CREATE OR REPLACE VIEW moderation.breakers WITH (security_barrier) AS
SELECT
    b.source, b.opened_at, b.images, b.flag_share, b.policy_id, b.closed_at, b.closed_by,
    b.close_reason
FROM app.breakers b WHERE VISIBLE(b.source);

CREATE OR REPLACE VIEW moderation.me WITH (security_barrier) AS
SELECT m.moderator, m.every_source, m.sources, m.lead
FROM app.moderators m WHERE m.moderator = CALLER;

CREATE OR REPLACE VIEW moderation.reasons WITH (security_barrier) AS
SELECT c.code, c.decision, c.words FROM app.reason_codes c;

CREATE OR REPLACE VIEW moderation.audit_trail WITH (security_barrier) AS
SELECT a.at, a.actor, a.action, a.image_id, i.source, a.reason, a.detail
FROM app.audit_log a
JOIN app.images i ON i.id = a.image_id
WHERE a.action <> 'state' AND VISIBLE(i.source)
  AND (a.actor = CALLER OR EXISTS (
    SELECT FROM app.moderators m WHERE m.moderator = CALLER AND m.lead
  ));
