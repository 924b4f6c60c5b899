-- Roles and the schema of unlatent, run once a database by a superuser, or by a role with CREATEROLE
-- that owns the database; running it again changes nothing. Roles belong to the cluster, so
-- migrations only grant to them.
-- Passwords are the operator's: ALTER ROLE unlatent_app PASSWORD '…'.

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT *
        FROM (VALUES
            ('unlatent_owner', 'LOGIN'),
            ('unlatent_app', 'LOGIN'),
            ('moderator', 'NOLOGIN')
        ) AS roles (name, login)
    LOOP
        BEGIN
            EXECUTE format(
                'CREATE ROLE %I %s NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS',
                wanted.name, wanted.login
            );
        EXCEPTION
            -- unique_violation: another database of this cluster is bootstrapped at this moment.
            WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;

    -- The owner may create the schemas that later migrations add.
    EXECUTE format(
        'GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO unlatent_owner', current_database()
    );
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO unlatent_app, moderator', current_database());
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());

    -- The administrator of a managed service may create a role, but not act for it unasked.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = CURRENT_USER) THEN
        GRANT unlatent_owner TO CURRENT_USER;
    END IF;
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;

CREATE SCHEMA IF NOT EXISTS app AUTHORIZATION unlatent_owner;
