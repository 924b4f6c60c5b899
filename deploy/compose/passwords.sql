-- Run by the image of PostgreSQL once, after bootstrap.sql: the logins of compose.yaml.
\set ON_ERROR_STOP on
\getenv owner OWNER_PASSWORD
\getenv app APP_PASSWORD
\getenv operator OPERATOR_PASSWORD
ALTER ROLE unlatent_owner PASSWORD :'owner';
ALTER ROLE unlatent_app PASSWORD :'app';
ALTER ROLE unlatent_operator PASSWORD :'operator';
