-- What `unlatent serve` asks in the name of a source.

-- Calls on one image take turns, as those of moderators.
CREATE OR REPLACE FUNCTION app.image_of_source(image uuid, its_source text) RETURNS app.images
LANGUAGE plpgsql SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(image::text, 0));
    SELECT * INTO found_image FROM app.images i WHERE i.id = image AND i.source = its_source;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'no_data_found',
            MESSAGE = 'no image ' || coalesce(image::text, 'is named');
    END IF;
    RETURN found_image;
END
$$;

CREATE OR REPLACE FUNCTION app.appeal_by_source(image uuid, its_source text, note text)
RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    RETURN app.add_appeal(
        app.image_of_source(image, its_source), 'source:' || its_source, note
    );
END
$$;

CREATE OR REPLACE FUNCTION app.report_by_source(image uuid, its_source text, note text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_image app.images := app.image_of_source(image, its_source);
BEGIN
    PERFORM app.queue_image(found_image, 'report');
    PERFORM app.audit('request_review', image, 'report', jsonb_build_object(
        'by', 'source:' || its_source, 'note', left(note, 4000)
    ));
END
$$;

-- Notes which request a client sent under a key; returns the SHA-256 of the one that has the key, this
-- one or an earlier one. Keys go after a day: every new one takes some of the old ones with it.
CREATE OR REPLACE FUNCTION app.note_request(its_source text, its_key text, its_sha256 bytea)
RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    DELETE FROM app.request_keys k WHERE (k.source, k.key) IN (
        SELECT o.source, o.key FROM app.request_keys o WHERE o.at < now() - interval '1 day'
        ORDER BY o.at LIMIT 10 FOR UPDATE SKIP LOCKED
    );
    INSERT INTO app.request_keys (source, key, sha256) VALUES (its_source, its_key, its_sha256)
    ON CONFLICT DO NOTHING;
    RETURN (
        SELECT k.sha256 FROM app.request_keys k WHERE k.source = its_source AND k.key = its_key
    );
END
$$;
