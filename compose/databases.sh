#!/bin/sh
# One server, three databases: features, mlflow and optuna, each owned by a login of its own, and the login `sweeps`, which
# reads features and nothing else. compose.yaml runs this on a new server; on any other PostgreSQL (15 or newer) run it as
# a superuser, with PGHOST, PGPORT and PGUSER saying where. It is safe to repeat; that is also how a password is changed.
set -e

: "${FORGE_SWEEP_FEATURES_PASSWORD:?is not set; expected the password of the login features}"
: "${FORGE_SWEEP_SWEEPS_PASSWORD:?is not set; expected the password of the login sweeps}"
: "${FORGE_SWEEP_MLFLOW_PASSWORD:?is not set; expected the password of the login mlflow}"
: "${FORGE_SWEEP_OPTUNA_PASSWORD:?is not set; expected the password of the login optuna}"

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres <<'SQL'
SET client_min_messages = 'warning';
-- Passwords come by \getenv, since everybody on a machine can read the arguments of a process. Nor does the server write
-- the statements that hold them to its log.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
\getenv features FORGE_SWEEP_FEATURES_PASSWORD
\getenv sweeps FORGE_SWEEP_SWEEPS_PASSWORD
\getenv mlflow FORGE_SWEEP_MLFLOW_PASSWORD
\getenv optuna FORGE_SWEEP_OPTUNA_PASSWORD

-- `forge-sweep data init` gives these two their privileges. It finds them here, so that its login need not create roles.
SELECT format('CREATE ROLE %I NOLOGIN', role) FROM unnest('{forge_tuner,forge_confirm}'::text[]) role
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec
SELECT format('CREATE ROLE %I LOGIN', role) FROM unnest('{features,sweeps,mlflow,optuna}'::text[]) role
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec
ALTER ROLE features LOGIN PASSWORD :'features';
ALTER ROLE sweeps LOGIN PASSWORD :'sweeps';
ALTER ROLE mlflow LOGIN PASSWORD :'mlflow';
ALTER ROLE optuna LOGIN PASSWORD :'optuna';
GRANT forge_tuner, forge_confirm TO features, sweeps;

SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING ''UTF8''', name, name)
    FROM unnest('{features,mlflow,optuna}'::text[]) name
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', name) FROM unnest('{features,mlflow,optuna}'::text[]) name \gexec
GRANT CONNECT ON DATABASE features TO sweeps;
SQL
