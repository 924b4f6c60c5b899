-- Intervals that views need; pure functions of their arguments.

-- Wilson's score interval (Wilson 1927) of a share seen in `n` images; `n` may be an effective size.
CREATE OR REPLACE FUNCTION moderation.wilson(
    share float8, n float8, OUT low float8, OUT high float8
)
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN n > 0 THEN greatest(0, centre - half) ELSE 0 END,
           CASE WHEN n > 0 THEN least(1, centre + half) ELSE 1 END
    FROM (SELECT 1.959963984540054::float8 AS z) constants,
         LATERAL (
            SELECT (share + z * z / (2 * n)) / (1 + z * z / n) AS centre,
                   z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n) AS half
         ) w
    WHERE n > 0
    UNION ALL SELECT 0, 1 WHERE n IS NULL OR n <= 0
$$;

-- Recall of a detector at its policy: of the generated uploads, the share that was not let through.
-- `flagged` uploads of which a share `precision` is generated (estimated from `flag_n` decided ones)
-- and `unflagged` ones of which a share `miss_rate` is (estimated from `miss_n` audited ones);
-- the sizes are effective ones, infinite where every image was looked at.
-- The interval of the ratio misses / hits is the MOVER of two Wilson intervals (Donner and Zou,
-- "Closed-form confidence intervals for functions of the normal mean and standard deviation",
-- Statistical Methods in Medical Research 21, 2012); recall is 1 / (1 + ratio).
CREATE OR REPLACE FUNCTION moderation.recall_interval(
    flagged float8, "precision" float8, flag_n float8,
    unflagged float8, miss_rate float8, miss_n float8,
    OUT recall float8, OUT low float8, OUT high float8
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, moderation, pg_temp AS $$
DECLARE
    hits float8 := flagged * "precision";
    misses float8 := unflagged * miss_rate;
    hits_low float8;
    hits_high float8;
    misses_low float8;
    misses_high float8;
    spread float8;
    ratio_low float8;
    ratio_high float8;
BEGIN
    IF hits IS NULL OR misses IS NULL OR hits + misses = 0 THEN
        RETURN;
    END IF;
    recall := hits / (hits + misses);
    SELECT flagged * w.low, flagged * w.high INTO hits_low, hits_high
    FROM moderation.wilson("precision", flag_n) w;
    SELECT unflagged * w.low, unflagged * w.high INTO misses_low, misses_high
    FROM moderation.wilson(miss_rate, miss_n) w;
    IF flag_n = 'infinity' THEN
        hits_low := hits;
        hits_high := hits;
    END IF;
    IF miss_n = 'infinity' THEN
        misses_low := misses;
        misses_high := misses;
    END IF;
    spread := greatest(0, (misses * hits) ^ 2
        - misses_low * hits_high * (2 * misses - misses_low) * (2 * hits - hits_high));
    ratio_low := (misses * hits - sqrt(spread)) / nullif(hits_high * (2 * hits - hits_high), 0);
    spread := greatest(0, (misses * hits) ^ 2
        - misses_high * hits_low * (2 * misses - misses_high) * (2 * hits - hits_low));
    ratio_high := (misses * hits + sqrt(spread)) / nullif(hits_low * (2 * hits - hits_low), 0);
    high := 1 / (1 + greatest(0, coalesce(ratio_low, 0)));
    low := CASE WHEN ratio_high IS NULL THEN 0 ELSE 1 / (1 + ratio_high) END;
END
$$;

-- The effective size of a simple random sample of `n` out of `total`: sampling without return from
-- a finite stratum is more exact by (1 - n / total) (Cochran, "Sampling Techniques", 3rd ed., 2.6).
CREATE OR REPLACE FUNCTION moderation.effective_size(n float8, total float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN n >= total THEN 'infinity'::float8 ELSE n / (1 - n / total) END
$$;

-- What became of a C2PA manifest. Earlier releases stored other words: "valid" was a file that fits,
-- whoever signed it; "invalid" was one that does not fit, or whose certificate had ended meanwhile.
-- "unreadable" stays, because nobody knows any more whether it was broken or lies elsewhere.
CREATE OR REPLACE FUNCTION moderation.c2pa_state(stored text, problems text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN stored = 'valid' THEN 'well_formed'
        WHEN stored = 'invalid' AND problems = ARRAY['signingCredential.expired']
        THEN 'well_formed'
        WHEN stored = 'invalid' THEN 'broken'
        ELSE stored
    END
$$;

-- What is known of the signer of a file that fits; earlier releases had no lists of whom to trust.
CREATE OR REPLACE FUNCTION moderation.c2pa_signer_state(stored text, state text, problems text[])
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN state = 'valid' THEN 'unknown'
        WHEN state = 'invalid' AND problems = ARRAY['signingCredential.expired'] THEN 'expired'
        ELSE stored
    END
$$;

-- Where a verdict lies to the point of accusation, in the words of detection/score.py; NULL for a
-- verdict of an earlier release, which kept no distance.
CREATE OR REPLACE FUNCTION moderation.distance_words(
    label text, distance float8, inapplicable text
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTANCE_WORDS
$$;

-- A policy goes by the score alone: its flag must not read as an accusation by the detector.
CREATE OR REPLACE FUNCTION moderation.tier_words(tier text, label text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN tier IN ('flag', 'flag_high') AND label <> 'generated'
        THEN tier || ' by score alone'
        ELSE tier
    END
$$;

-- An address from a template: {id}, {bucket} and {key}, the key safe for a URL's path.
CREATE OR REPLACE FUNCTION moderation.address(template text, id uuid, bucket text, key text)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT replace(replace(replace(template, '{id}', id::text), '{bucket}', bucket), '{key}',
        replace(replace(replace(replace(replace(replace(replace(
            key, '%', '%25'), '?', '%3F'), '#', '%23'), ' ', '%20'), '+', '%2B'), '"', '%22'),
            '<', '%3C'))
$$;
