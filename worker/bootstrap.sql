-- Roles and the schema of unlatent, run once a database by a superuser, or by a role with CREATEROLE
-- that owns the database; running it again changes nothing that is there. Roles belong to the cluster, so
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
            ('unlatent_operator', 'LOGIN'),
            ('unlatent_console', 'LOGIN'),
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

    -- An operator may do what the service may, and besides what only people should.
    GRANT unlatent_app TO unlatent_operator;

    -- The owner may create the schemas that later migrations add.
    EXECUTE format(
        'GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO unlatent_owner', current_database()
    );
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO unlatent_app, unlatent_operator, unlatent_console, moderator',
        current_database()
    );
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());

    -- Whoever idles in a transaction keeps its locks from the service. Logins do not inherit settings
    -- of a group such as moderator, so the limits are the database's. The service has its own, which
    -- are shorter. A limit that somebody chose stays.
    FOR wanted IN
        SELECT limits.*
        FROM (VALUES
            ('idle_in_transaction_session_timeout', '30s'),
            ('transaction_timeout', '5min')
        ) AS limits (name, value)
        JOIN pg_settings known USING (name)  -- the second came with PostgreSQL 17
        WHERE limits.name NOT IN (
            SELECT split_part(setting, '=', 1)
            FROM pg_db_role_setting chosen, unnest(chosen.setconfig) setting
            WHERE chosen.setrole = 0 AND chosen.setdatabase = (
                SELECT oid FROM pg_database WHERE datname = current_database()
            )
        )
    LOOP
        EXECUTE format(
            'ALTER DATABASE %I SET %I = %L', current_database(), wanted.name, wanted.value
        );
        -- Migrations, and administrators who build an index by hand, may take their time; the
        -- service bounds its statements, and waits for storage in few of its transactions.
        CONTINUE WHEN wanted.name <> 'transaction_timeout';
        EXECUTE format(
            'ALTER ROLE unlatent_owner IN DATABASE %1$I SET %2$I = 0;'
            'ALTER ROLE unlatent_app IN DATABASE %1$I SET %2$I = 0;'
            'ALTER ROLE CURRENT_USER IN DATABASE %1$I SET %2$I = 0',
            current_database(), wanted.name
        );
    END LOOP;

    -- Postgres lets every login store large objects, which fill the disk, and take the advisory
    -- locks that promotions and migrations wait for. Only a superuser can take these rights away.
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = CURRENT_USER) THEN
        FOR wanted IN
            SELECT p.oid::regprocedure AS signature, p.proname ~ 'advisory' AS locks
            FROM pg_proc p
            WHERE p.pronamespace = 'pg_catalog'::regnamespace
              AND p.proname ~ '^(lo_|loread$|lowrite$|pg_.*advisory)'
              AND has_function_privilege('public', p.oid, 'EXECUTE')
        LOOP
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', wanted.signature);
            CONTINUE WHEN NOT wanted.locks;
            EXECUTE format(
                'GRANT EXECUTE ON FUNCTION %s TO unlatent_owner, unlatent_app', wanted.signature
            );
        END LOOP;
    END IF;

    -- The administrator of a managed service may create a role, but not act for it unasked.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = CURRENT_USER) THEN
        GRANT unlatent_owner TO CURRENT_USER;
    END IF;
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;

CREATE SCHEMA IF NOT EXISTS app AUTHORIZATION unlatent_owner;
