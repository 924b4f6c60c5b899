"""Millions of verdicts by set-based SQL, for tests of plans and for benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

SOURCES = 8
#: What is open is of so many newest images: history grows, what waits for people does not.
NEWEST = 1_000_000

#: Set-based and without triggers: rows as the ledger and the triggers would have left them.
GENERATE = """
    SET session_replication_role = replica;
    SET synchronous_commit = off;
    SET statement_timeout = 0;
    INSERT INTO app.images (id, bucket, key, etag, source, uploader, state, sha256, pdq,
        pdq_quality, size_bytes, format, width, height, created_at, state_since)
    SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'uploads',
           'k' || n, 'e', 'source-' || (n % {sources}), 'u' || (n % 100000), 'scored',
           lpad(to_hex(n), 64, '0'), sha256(convert_to('p' || n / 4, 'UTF8')), 80, 100000, 'JPEG',
           1024, 768,
           now() - (({rows} - n) || ' seconds')::interval, now()
    FROM generate_series(1, {rows}) n;
    DROP INDEX app.ix_near_duplicate_keys_chunks;
    INSERT INTO app.near_duplicate_keys SELECT id, app.pdq_chunks(pdq) FROM app.images;
    CREATE INDEX ix_near_duplicate_keys_chunks ON app.near_duplicate_keys USING gin (chunks);
    INSERT INTO app.leases (image_id, worker, purpose, since, until, closed_at, outcome)
    SELECT id, 'w', 'score', created_at, created_at, created_at, 'scored'
    FROM app.images LIMIT 100000;
    INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label, branches,
        decided_by, operating_point, prior, device, dtype, tier, policy_id, scored_at, evidence_uri)
    SELECT i.id, (SELECT min(id) FROM app.leases), 'model-1', 'champion', s.score,
           CASE WHEN s.score >= 0.97 THEN 'generated' ELSE 'real' END,
           '{{"lare": 1, "aligned": 2}}', 'lare', 'fpr=0.01', 0.1, 'cuda:0', 'float32',
           CASE WHEN s.score >= 0.98 THEN 'flag' WHEN s.score >= 0.97 THEN 'review'
                ELSE 'allow' END,
           (SELECT min(id) FROM app.policies), i.created_at,
           CASE WHEN s.score >= 0.97 AND i.n % 2 = 0
                THEN 's3://evidence/' || i.id || '/evidence.json' END
    FROM (SELECT *, row_number() OVER (ORDER BY created_at) AS n FROM app.images) i,
         LATERAL (SELECT (i.n * 7919 % 100003) / 100003.0 AS score) s
    ORDER BY i.n;
    INSERT INTO app.reviews (image_id, source, queue, verdict_id, uncertainty, reach, queued_at,
        rank_at, audit_share, closed_at)
    SELECT v.image_id, i.source,
           CASE v.tier WHEN 'flag' THEN 'flagged' WHEN 'review' THEN 'unsure' ELSE 'audit' END,
           v.id, 0.5, 1, v.scored_at, v.scored_at - interval '2 hours',
           CASE v.tier WHEN 'allow' THEN 0.0025 END,
           CASE WHEN v.tier = 'allow' OR v.id % 2 = 0
                    OR i.created_at < now() - interval '{newest} seconds'
                THEN v.scored_at + interval '1 hour' END
    FROM app.verdicts v JOIN app.images i ON i.id = v.image_id
    WHERE v.tier <> 'allow' OR v.id % 401 = 0;
    INSERT INTO app.decisions (image_id, moderator, decision, reason_code, why_reviewed,
        verdict_id, claimed_at, created_at)
    SELECT r.image_id, 'm', said.decision, said.reason_code, r.queue, r.verdict_id,
           r.closed_at - interval '1 minute', r.closed_at
    FROM app.reviews r
    JOIN (VALUES (false, 'generated', 'generated_artefacts'), (true, 'real', 'real_plausible'))
        said (drawn, decision, reason_code) ON said.drawn = (r.audit_share IS NOT NULL)
    WHERE r.closed_at IS NOT NULL
    ORDER BY r.closed_at;
    INSERT INTO app.claims (image_id, moderator, queue, since, until, closed_at, outcome)
    SELECT r.image_id, 'm', r.queue, r.queued_at, r.closed_at, r.closed_at, 'decided'
    FROM app.reviews r WHERE r.closed_at IS NOT NULL;
    INSERT INTO app.appeals (appeal_id, image_id, decision_id, event, actor, created_at)
    SELECT lpad(to_hex(d.id), 32, '0')::uuid, d.image_id, d.id, event, 'n', d.created_at
    FROM app.decisions d, (VALUES ('opened'), ('upheld')) step (event)
    WHERE d.id % 20 = 0 AND (
        event = 'opened' OR d.id % 40 = 0 OR d.created_at < now() - interval '{newest} seconds'
    );
    INSERT INTO app.audit_log (at, actor, action, image_id, to_state)
    SELECT i.created_at, 'unlatent_app', 'state', i.id, 'pending' FROM app.images i;
    SELECT app.recount();
    RESET session_replication_role;
    RESET statement_timeout;
"""


def generate(superuser: psycopg.Connection, rows: int) -> None:
    """Fill the database with `rows` scored images; 3 % need a person, and one of 401 was audited.

    Of the newest million half of those are decided, of older ones all; all audited ones are, as
    real. Four uploads each look alike; of 20 decisions one is appealed, and of the newest million
    half of the appeals are open.
    """
    for statement in GENERATE.format(rows=rows, sources=SOURCES, newest=NEWEST).split(";\n"):
        if statement.strip():
            superuser.execute(statement)
    superuser.execute("VACUUM (ANALYZE)")
