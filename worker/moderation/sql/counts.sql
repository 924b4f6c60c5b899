-- Counts by day, kept up by triggers: what a view says of months is a sum of few rows.
--
-- Rows of verdict_counts, source_counts and flag_counts add up. Whoever changes something appends
-- what it adds and takes away, in the same transaction and without waiting for anybody;
-- app.keep_counts makes one row of many. So the sums are right for closed days too, whether beat runs
-- or not, but for one thing: two transactions on the same image that do not see each other, a decision
-- beside a verdict, a source that is named late or a draw of the audit, may leave a verdict counted as
-- it was before one of them. app.recount mends that.

CREATE OR REPLACE FUNCTION app.day_of(moment timestamptz) RETURNS date
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (moment AT TIME ZONE 'UTC')::date
$$;

-- Whether the random audit drew the image.
CREATE OR REPLACE FUNCTION app.is_drawn(image uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM app.reviews r WHERE r.image_id = image AND r.audit_share IS NOT NULL
    )
$$;

-- Adds the champion's verdicts on an image, `times` 1 or -1, as decided by `decision` or nobody.
CREATE OR REPLACE FUNCTION app.count_verdicts(
    image uuid, its_source text, its_decision app.decisions, times integer
) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, app, pg_temp AS $$
    INSERT INTO app.verdict_counts (
        day, source, model_version, policy_id, tier, label, held, decision, overturns, audited, n
    )
    SELECT app.day_of(v.scored_at), its_source, v.model_version, v.policy_id, v.tier, v.label,
        v.held, its_decision.decision, its_decision.overturns IS NOT NULL,
        its_decision.id IS NOT NULL AND app.is_drawn(image), times
    FROM app.verdicts v WHERE v.image_id = image AND v.role = 'champion'
$$;

CREATE OR REPLACE FUNCTION app.count_new_verdicts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    WITH found AS MATERIALIZED (
        SELECT v.scored_at, v.model_version, v.policy_id, v.tier, v.label, v.held, i.source,
            d.decision, d.overturns IS NOT NULL AS overturns,
            d.id IS NOT NULL AND app.is_drawn(v.image_id) AS audited
        FROM added v
        CROSS JOIN LATERAL (
            SELECT x.source FROM app.images x WHERE x.id = v.image_id OFFSET 0
        ) i
        LEFT JOIN LATERAL (
            SELECT x.id, x.decision, x.overturns FROM app.decisions x
            WHERE x.image_id = v.image_id ORDER BY x.id DESC LIMIT 1
        ) d ON true
        WHERE v.role = 'champion'
    ), flags AS (
        INSERT INTO app.flag_counts (at, source, images, flagged)
        SELECT f.scored_at, f.source, count(*),
            count(*) FILTER (WHERE f.held OR f.tier IN ('flag', 'flag_high'))
        FROM found f WHERE f.tier IS NOT NULL
        GROUP BY 1, 2
    )
    INSERT INTO app.verdict_counts (
        day, source, model_version, policy_id, tier, label, held, decision, overturns, audited, n
    )
    SELECT (f.scored_at AT TIME ZONE 'UTC')::date, f.source, f.model_version, f.policy_id, f.tier,
        f.label, f.held, f.decision, f.overturns, f.audited, count(*)
    FROM found f
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
    RETURN NULL;
END
$$;

-- A verdict that was in shadow and is the champion's now, or one that somebody mends by hand.
CREATE OR REPLACE FUNCTION app.count_changed_verdict() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    its_source text := (SELECT i.source FROM app.images i WHERE i.id = NEW.image_id);
    d app.decisions := app.last_decision(NEW.image_id);
    drawn boolean := d.id IS NOT NULL AND app.is_drawn(NEW.image_id);
BEGIN
    INSERT INTO app.verdict_counts (
        day, source, model_version, policy_id, tier, label, held, decision, overturns, audited, n
    )
    SELECT app.day_of(v.scored_at), its_source, v.model_version, v.policy_id, v.tier, v.label,
        v.held, d.decision, d.overturns IS NOT NULL, drawn, v.times
    FROM (SELECT OLD.*, -1 AS times UNION ALL SELECT NEW.*, 1) v
    WHERE v.role = 'champion';
    INSERT INTO app.flag_counts (at, source, images, flagged)
    SELECT v.scored_at, its_source, v.times,
        CASE WHEN v.held OR v.tier IN ('flag', 'flag_high') THEN v.times ELSE 0 END
    FROM (SELECT OLD.*, -1 AS times UNION ALL SELECT NEW.*, 1) v
    WHERE v.role = 'champion' AND v.tier IS NOT NULL;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION app.count_decision() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    its_source text := (SELECT i.source FROM app.images i WHERE i.id = NEW.image_id);
    before app.decisions;
BEGIN
    SELECT * INTO before FROM app.decisions d
    WHERE d.image_id = NEW.image_id AND d.id < NEW.id ORDER BY d.id DESC LIMIT 1;
    PERFORM app.count_verdicts(NEW.image_id, its_source, before, -1);
    PERFORM app.count_verdicts(NEW.image_id, its_source, NEW, 1);
    INSERT INTO app.source_counts (day, source, decisions, overturns)
    VALUES (app.day_of(NEW.created_at), its_source, 1, (NEW.overturns IS NOT NULL)::integer);
    RETURN NULL;
END
$$;

-- The audit may draw an image after somebody decided it.
CREATE OR REPLACE FUNCTION app.count_draw() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    its_source text := (SELECT i.source FROM app.images i WHERE i.id = NEW.image_id);
    d app.decisions := app.last_decision(NEW.image_id);
BEGIN
    IF d.id IS NOT NULL THEN
        INSERT INTO app.verdict_counts (
            day, source, model_version, policy_id, tier, label, held, decision, overturns,
            audited, n
        )
        SELECT app.day_of(v.scored_at), its_source, v.model_version, v.policy_id, v.tier, v.label,
            v.held, d.decision, d.overturns IS NOT NULL, x.drawn, x.times
        FROM app.verdicts v, (VALUES (false, -1), (true, 1)) x (drawn, times)
        WHERE v.image_id = NEW.image_id AND v.role = 'champion';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION app.count_appeal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    INSERT INTO app.source_counts (day, source, appeals)
    SELECT app.day_of(NEW.created_at), i.source, 1 FROM app.images i WHERE i.id = NEW.image_id;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION app.count_new_images() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    INSERT INTO app.source_counts (day, source, uploads, failed)
    SELECT app.day_of(i.created_at), i.source, count(*),
        count(*) FILTER (WHERE i.state IN ('failed', 'quarantined'))
    FROM added i
    GROUP BY 1, 2;
    RETURN NULL;
END
$$;

-- Failed, or failed no longer, because somebody reopened it.
CREATE OR REPLACE FUNCTION app.count_failure() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    INSERT INTO app.source_counts (day, source, failed) VALUES (
        app.day_of(NEW.created_at), OLD.source,
        CASE WHEN NEW.state IN ('failed', 'quarantined') THEN 1 ELSE -1 END
    );
    RETURN NULL;
END
$$;

-- A hook names the source after the upload: all that was counted of it goes there.
CREATE OR REPLACE FUNCTION app.count_source() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    PERFORM app.count_verdicts(NEW.id, OLD.source, app.last_decision(NEW.id), -1);
    PERFORM app.count_verdicts(NEW.id, NEW.source, app.last_decision(NEW.id), 1);
    INSERT INTO app.flag_counts (at, source, images, flagged)
    SELECT v.scored_at, s.source, s.times,
        CASE WHEN v.held OR v.tier IN ('flag', 'flag_high') THEN s.times ELSE 0 END
    FROM app.verdicts v, (VALUES (OLD.source, -1), (NEW.source, 1)) s (source, times)
    WHERE v.image_id = NEW.id AND v.role = 'champion' AND v.tier IS NOT NULL;
    INSERT INTO app.source_counts (day, source, uploads, failed, decisions, overturns, appeals)
    SELECT c.day, s.source, s.times * c.uploads, s.times * c.failed, s.times * c.decisions,
        s.times * c.overturns, s.times * c.appeals
    FROM (
        SELECT app.day_of(NEW.created_at) AS day, 1 AS uploads,
            (NEW.state IN ('failed', 'quarantined'))::integer AS failed, 0 AS decisions,
            0 AS overturns, 0 AS appeals
        UNION ALL
        SELECT app.day_of(d.created_at), 0, 0, 1, (d.overturns IS NOT NULL)::integer, 0
        FROM app.decisions d WHERE d.image_id = NEW.id
        UNION ALL
        SELECT app.day_of(a.created_at), 0, 0, 0, 0, 1
        FROM app.appeals a WHERE a.image_id = NEW.id AND a.event = 'opened'
    ) c, (VALUES (OLD.source, -1), (NEW.source, 1)) s (source, times);
    -- The medians of those days are taken anew.
    DELETE FROM app.decision_medians m
    USING app.decisions d
    WHERE d.image_id = NEW.id AND m.day = app.day_of(d.created_at)
      AND m.source IN (OLD.source, NEW.source);
    INSERT INTO app.decision_medians (day, source, seconds)
    SELECT x.day, s.source, app.median_of(x.day, s.source)
    FROM (
        SELECT DISTINCT app.day_of(d.created_at) AS day FROM app.decisions d
        WHERE d.image_id = NEW.id AND app.day_of(d.created_at) <= app.last_closed_day()
    ) x, (VALUES (OLD.source), (NEW.source)) s (source);
    RETURN NULL;
END
$$;

-- The last day whose medians are kept: no transaction that began in it runs any more.
CREATE OR REPLACE FUNCTION app.last_closed_day() RETURNS date
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT coalesce(max(m.day), '-infinity') FROM app.decision_medians m
$$;

-- The median time from claim to decision of one day and source, in seconds.
CREATE OR REPLACE FUNCTION app.median_of(its_day date, its_source text) RETURNS float8
LANGUAGE sql STABLE SET search_path = pg_catalog, app, pg_temp AS $$
    SELECT percentile_cont(0.5) WITHIN GROUP (
        ORDER BY extract(epoch FROM d.created_at - d.claimed_at)::float8
    )
    FROM app.decisions d JOIN app.images i ON i.id = d.image_id
    WHERE d.created_at >= its_day::timestamp AT TIME ZONE 'UTC'
      AND d.created_at < (its_day + 1)::timestamp AT TIME ZONE 'UTC' AND i.source = its_source
$$;

-- Keeps the medians of days that are over, at most `most` days; a quarter of an hour is longer than
-- any transaction that decides.
CREATE OR REPLACE FUNCTION app.close_days(most integer) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    closed integer := 0;
    next_day date;
    from_then timestamptz := (app.last_closed_day() + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    -- Another worker does it already.
    IF NOT pg_try_advisory_xact_lock(hashtext('app.close_days')) THEN
        RETURN 0;
    END IF;
    LOOP
        SELECT app.day_of(min(d.created_at)) INTO next_day FROM app.decisions d
        WHERE d.created_at >= from_then;
        EXIT WHEN next_day IS NULL OR closed = most
            OR next_day >= app.day_of(clock_timestamp() - interval '15 minutes');
        INSERT INTO app.decision_medians (day, source, seconds)
        SELECT next_day, i.source, percentile_cont(0.5) WITHIN GROUP (
            ORDER BY extract(epoch FROM d.created_at - d.claimed_at)::float8
        )
        FROM app.decisions d JOIN app.images i ON i.id = d.image_id
        WHERE d.created_at >= next_day::timestamp AT TIME ZONE 'UTC'
          AND d.created_at < (next_day + 1)::timestamp AT TIME ZONE 'UTC'
        GROUP BY i.source;
        closed := closed + 1;
        from_then := (next_day + 1)::timestamp AT TIME ZONE 'UTC';
    END LOOP;
    RETURN closed;
END
$$;

-- What beat asks for: makes one row of many, closes days, and forgets flags that no policy's window
-- reaches. Returns how many rows were merged. Two at once do each other no harm: a row is taken by
-- whoever deletes it.
CREATE OR REPLACE FUNCTION app.keep_counts() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    merged bigint;
    more bigint;
BEGIN
    WITH gone AS (
        DELETE FROM app.verdict_counts c
        WHERE c.day IN (SELECT x.day FROM app.verdict_counts x WHERE x.loose)
        RETURNING c.*
    ), kept AS (
        INSERT INTO app.verdict_counts (
            day, source, model_version, policy_id, tier, label, held, decision, overturns,
            audited, n, loose
        )
        SELECT g.day, g.source, g.model_version, g.policy_id, g.tier, g.label, g.held, g.decision,
            g.overturns, g.audited, sum(g.n), false
        FROM gone g
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
        HAVING sum(g.n) <> 0
    )
    SELECT count(*) INTO merged FROM gone;
    WITH gone AS (
        DELETE FROM app.source_counts c
        WHERE c.day IN (SELECT x.day FROM app.source_counts x WHERE x.loose)
        RETURNING c.*
    ), kept AS (
        INSERT INTO app.source_counts (
            day, source, uploads, failed, decisions, overturns, appeals, loose
        )
        SELECT g.day, g.source, sum(g.uploads), sum(g.failed), sum(g.decisions), sum(g.overturns),
            sum(g.appeals), false
        FROM gone g
        GROUP BY 1, 2
    )
    SELECT count(*) INTO more FROM gone;
    DELETE FROM app.flag_counts c
    WHERE c.at < now() - (SELECT max(p.breaker_window) FROM app.policies p);
    PERFORM app.close_days(30);
    RETURN merged + more;
END
$$;

-- Counts everything anew. The tables stand still meanwhile: readers go on, workers wait. (Where an
-- installation had to drop the views before, readers of the views wait, too.) Days are written out,
-- because a function call for each of many million rows would take longer than the rest.
CREATE OR REPLACE FUNCTION app.recount() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
    SET work_mem = '256MB'  -- it joins whole tables, once
    SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    LOCK TABLE app.images, app.verdicts, app.decisions, app.appeals, app.reviews
        IN SHARE ROW EXCLUSIVE MODE;
    -- Whoever merges rows of a day would bring back what goes here.
    LOCK TABLE app.verdict_counts, app.source_counts, app.flag_counts, app.decision_medians
        IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM app.verdict_counts;
    DELETE FROM app.source_counts;
    DELETE FROM app.flag_counts;
    DELETE FROM app.decision_medians;
    INSERT INTO app.verdict_counts (
        day, source, model_version, policy_id, tier, label, held, decision, overturns, audited, n,
        loose
    )
    WITH decided AS (
        SELECT DISTINCT ON (x.image_id) x.image_id, x.decision, x.overturns,
            app.is_drawn(x.image_id) AS drawn
        FROM app.decisions x ORDER BY x.image_id, x.id DESC
    )
    SELECT (v.scored_at AT TIME ZONE 'UTC')::date, i.source, v.model_version, v.policy_id, v.tier, v.label, v.held,
        d.decision, d.overturns IS NOT NULL, coalesce(d.drawn, false), count(*), false
    FROM app.verdicts v
    JOIN app.images i ON i.id = v.image_id
    LEFT JOIN decided d ON d.image_id = v.image_id
    WHERE v.role = 'champion'
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
    INSERT INTO app.source_counts (
        day, source, uploads, failed, decisions, overturns, appeals, loose
    )
    SELECT c.day, c.source, sum(c.uploads), sum(c.failed), sum(c.decisions), sum(c.overturns),
        sum(c.appeals), false
    FROM (
        SELECT (i.created_at AT TIME ZONE 'UTC')::date AS day, i.source, count(*) AS uploads,
            count(*) FILTER (WHERE i.state IN ('failed', 'quarantined')) AS failed,
            0 AS decisions, 0 AS overturns, 0 AS appeals
        FROM app.images i GROUP BY 1, 2
        UNION ALL
        SELECT (d.created_at AT TIME ZONE 'UTC')::date, i.source, 0, 0, count(*), count(d.overturns), 0
        FROM app.decisions d JOIN app.images i ON i.id = d.image_id GROUP BY 1, 2
        UNION ALL
        SELECT (a.created_at AT TIME ZONE 'UTC')::date, i.source, 0, 0, 0, 0, count(*)
        FROM app.appeals a JOIN app.images i ON i.id = a.image_id
        WHERE a.event = 'opened' GROUP BY 1, 2
    ) c
    GROUP BY 1, 2;
    INSERT INTO app.flag_counts (at, source, images, flagged)
    SELECT v.scored_at, i.source, count(*),
        count(*) FILTER (WHERE v.held OR v.tier IN ('flag', 'flag_high'))
    FROM app.verdicts v
    CROSS JOIN LATERAL (SELECT x.source FROM app.images x WHERE x.id = v.image_id OFFSET 0) i
    WHERE v.role = 'champion' AND v.tier IS NOT NULL
      AND v.scored_at > now() - (SELECT max(p.breaker_window) FROM app.policies p)
    GROUP BY v.scored_at, i.source;
    PERFORM app.close_days(NULL);
END
$$;

CREATE OR REPLACE TRIGGER count_new AFTER INSERT ON app.verdicts
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION app.count_new_verdicts();
CREATE OR REPLACE TRIGGER count_changed
    AFTER UPDATE OF role, scored_at, tier, label, held, policy_id, model_version ON app.verdicts
    FOR EACH ROW WHEN (
        (OLD.role, OLD.scored_at, OLD.tier, OLD.label, OLD.held, OLD.policy_id, OLD.model_version)
        IS DISTINCT FROM
        (NEW.role, NEW.scored_at, NEW.tier, NEW.label, NEW.held, NEW.policy_id, NEW.model_version)
    )
    EXECUTE FUNCTION app.count_changed_verdict();
CREATE OR REPLACE TRIGGER count_new AFTER INSERT ON app.decisions
    FOR EACH ROW EXECUTE FUNCTION app.count_decision();
CREATE OR REPLACE TRIGGER count_draw AFTER INSERT ON app.reviews
    FOR EACH ROW WHEN (NEW.audit_share IS NOT NULL) EXECUTE FUNCTION app.count_draw();
CREATE OR REPLACE TRIGGER count_late_draw AFTER UPDATE OF audit_share ON app.reviews
    FOR EACH ROW WHEN (OLD.audit_share IS NULL AND NEW.audit_share IS NOT NULL)
    EXECUTE FUNCTION app.count_draw();
CREATE OR REPLACE TRIGGER count_new AFTER INSERT ON app.appeals
    FOR EACH ROW WHEN (NEW.event = 'opened') EXECUTE FUNCTION app.count_appeal();
CREATE OR REPLACE TRIGGER count_new AFTER INSERT ON app.images
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION app.count_new_images();
CREATE OR REPLACE TRIGGER count_failure AFTER UPDATE OF state ON app.images
    FOR EACH ROW WHEN (
        (OLD.state IN ('failed', 'quarantined')) <> (NEW.state IN ('failed', 'quarantined'))
    )
    EXECUTE FUNCTION app.count_failure();
CREATE OR REPLACE TRIGGER count_source AFTER UPDATE OF source ON app.images
    FOR EACH ROW WHEN (NEW.source <> OLD.source) EXECUTE FUNCTION app.count_source();

-- The first installation counts what is there: the triggers hold the tables' locks, so nothing comes
-- between. It takes longer than a migration's statement may.
SET LOCAL statement_timeout = 0;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM app.source_counts) AND EXISTS (SELECT FROM app.images) THEN
        PERFORM app.recount();
    END IF;
END
$$;
SET LOCAL statement_timeout = '60s';
