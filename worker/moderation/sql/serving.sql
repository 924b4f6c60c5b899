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

-- Notes which request a client sent under a key; returns the row that has the key, of this request or
-- of an earlier one. Keys go after a day: every new one takes some of the old ones with it.
CREATE OR REPLACE FUNCTION app.note_request(its_source text, its_key text, its_sha256 bytea)
RETURNS app.request_keys
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    found_key app.request_keys;
BEGIN
    INSERT INTO app.request_keys AS k (source, key, sha256)
    VALUES (its_source, its_key, its_sha256)
    ON CONFLICT (source, key) DO UPDATE SET sha256 = excluded.sha256, image_id = NULL, at = now()
    WHERE k.at < now() - interval '1 day';
    DELETE FROM app.request_keys k WHERE (k.source, k.key) IN (
        SELECT o.source, o.key FROM app.request_keys o WHERE o.at < now() - interval '1 day'
        ORDER BY o.at LIMIT 10 FOR UPDATE SKIP LOCKED
    );
    SELECT * INTO found_key FROM app.request_keys k
    WHERE k.source = its_source AND k.key = its_key;
    RETURN found_key;
END
$$;

-- Notes which image the request under a key became.
CREATE OR REPLACE FUNCTION app.note_request_image(its_source text, its_key text, image uuid)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
    UPDATE app.request_keys SET image_id = image WHERE source = its_source AND key = its_key
$$;
