-- Leaves undone for two days what people, webhooks, retention and training have to do.
INSERT INTO app.decisions (image_id, moderator, decision, reason_code, why_reviewed, verdict_id)
SELECT v.image_id, 'anna', d.decision, r.code, 'audit', v.id
FROM (SELECT min(id) AS id FROM app.verdicts) AS first
JOIN app.verdicts AS v USING (id)
CROSS JOIN (VALUES ('real'), ('generated')) AS d (decision)
CROSS JOIN LATERAL (SELECT code FROM app.reason_codes WHERE decision = d.decision LIMIT 1) AS r;

INSERT INTO app.reviews (image_id, source, queue, verdict_id, uncertainty, reach, queued_at, rank_at)
SELECT v.image_id, 'web', 'flagged', v.id, 0, 0, now() - interval '2 days', now()
FROM (SELECT max(id) AS id FROM app.verdicts) AS last
JOIN app.verdicts AS v USING (id)
ON CONFLICT (image_id) DO UPDATE
SET queue = 'flagged', queued_at = excluded.queued_at, closed_at = NULL;

INSERT INTO app.breakers (source, policy_id, images, flag_share)
SELECT 'web', max(id), 200, 0.5 FROM app.policies;

INSERT INTO app.outbox (topic, payload, created_at)
VALUES ('decision', '{}', now() - interval '2 days');

INSERT INTO app.erasures (image_id, reason, requested_at)
SELECT image_id, 'asked', now() - interval '2 days' FROM app.verdicts ORDER BY id LIMIT 1;

INSERT INTO app.drift_readings
    (model_version, source, images, reference_images, psi, ks, unsure, reference_unsure, decisions,
    overturned, drifted)
VALUES ('m', 'web', 9, 9, 0.4, 0.3, 0, 0, 2, 1, true);

WITH sealed AS (
    INSERT INTO app.dataset_snapshots (uri, decisions_up_to, digest, sealed_at)
    VALUES ('s3://training/d', 0, 'd', now()) RETURNING id
)
INSERT INTO app.snapshot_items (snapshot_id, image_id, label, why, group_key, side, weight)
SELECT sealed.id, v.image_id, 'real', 'decision', 'g', 'training', 1
FROM sealed, (SELECT image_id FROM app.verdicts ORDER BY id LIMIT 1) AS v;

INSERT INTO app.training_runs (slot, trigger, state, holder, lease_until, ended_at)
VALUES ('calendar:0', 'calendar', 'finished', NULL, now(), now()),
    ('calendar:1', 'calendar', 'running', 'gone', now() - interval '1 hour', NULL);
