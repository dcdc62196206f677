"""Versions, their rows, what was learned on them, and the ledger of looks at test rows."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE normalization_params (
    normalization_version TEXT PRIMARY KEY,
    feature_names JSONB NOT NULL,
    means FLOAT8[] NOT NULL,
    stds FLOAT8[] NOT NULL,
    mins FLOAT8[] NOT NULL,
    maxes FLOAT8[] NOT NULL,
    fills FLOAT8[] NOT NULL,
    recipe JSON NOT NULL,  -- as it was written: JSONB has no negative zero, and makes whole numbers of large ones
    row_count BIGINT NOT NULL,
    computed_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE normalization_params
    IS 'Learned on training rows only, after imputation; stds is what the scaler divides by';

CREATE TABLE dataset_versions (
    version_id INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]*$'),
    features JSONB NOT NULL,
    targets JSONB NOT NULL,
    key JSONB,
    categorical JSONB NOT NULL,
    task TEXT NOT NULL,
    positive JSONB,
    classes JSONB NOT NULL,
    row_counts JSONB NOT NULL,
    digest TEXT NOT NULL,
    split_digest TEXT NOT NULL,
    role_digests JSONB NOT NULL,
    train_print TEXT NOT NULL,
    test_fingerprints BYTEA NOT NULL,
    parent TEXT REFERENCES dataset_versions (name),
    source TEXT NOT NULL,
    split JSONB NOT NULL,
    dropped JSONB NOT NULL,
    normalization_version TEXT NOT NULL REFERENCES normalization_params,
    created_by TEXT NOT NULL DEFAULT session_user,
    seal TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    frozen_at TIMESTAMPTZ NOT NULL
);

-- Texts of features that only test rows have: who may not see these rows may not see these either.
CREATE TABLE test_texts (
    dataset_version INTEGER PRIMARY KEY REFERENCES dataset_versions ON DELETE CASCADE,
    texts JSONB NOT NULL
);

CREATE TABLE training_features (
    feature_id BIGSERIAL,
    dataset_version INTEGER NOT NULL,
    split TEXT NOT NULL CHECK (split IN ('train', 'val', 'test')),
    source_row BIGINT NOT NULL,
    row_key TEXT,
    raw_vector FLOAT8[] NOT NULL,
    scaled_vector FLOAT8[] NOT NULL,
    labels FLOAT8[] NOT NULL,
    normalization_version TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (dataset_version, feature_id)
) PARTITION BY LIST (dataset_version);
-- Vectors of more than 2 kB are moved out of line as they are: compressing floats costs more than it saves.
ALTER TABLE training_features ALTER raw_vector SET STORAGE EXTERNAL, ALTER scaled_vector SET STORAGE EXTERNAL;

CREATE TABLE test_looks (
    look_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset_version INTEGER NOT NULL,
    version_name TEXT NOT NULL,
    digest TEXT NOT NULL,
    run TEXT NOT NULL CHECK (run !~ '[[:cntrl:]]'),
    purpose TEXT NOT NULL CHECK (purpose ~ '[[:graph:]]' AND purpose !~ '[[:cntrl:]]'),
    who TEXT NOT NULL CHECK (who ~ '[[:graph:]]' AND who !~ '[[:cntrl:]]'),
    db_user TEXT NOT NULL DEFAULT session_user,
    looked_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    backend INTEGER NOT NULL DEFAULT pg_backend_pid(),
    transaction BIGINT NOT NULL DEFAULT txid_current()
);
COMMENT ON TABLE test_looks IS 'Every look at test rows; append-only, and it outlives a dropped version';
CREATE INDEX ON test_looks (digest);
"""

FREEZING = """
CREATE FUNCTION forge_sweep_refuse_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'dataset version % is frozen: % of its rows is refused', TG_ARGV[0], TG_OP
        USING ERRCODE = 'read_only_sql_transaction', HINT = 'ingest a new version, or drop this one';
END $$;

CREATE FUNCTION forge_sweep_refuse_frozen_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('forge_sweep.dropping', true) = OLD.name THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'dataset version % is frozen: % is refused', OLD.name, TG_OP
        USING ERRCODE = 'read_only_sql_transaction', HINT = 'ingest a new version, or `forge-sweep data drop` this one';
END $$;
CREATE TRIGGER frozen BEFORE UPDATE OR DELETE ON dataset_versions
    FOR EACH ROW EXECUTE FUNCTION forge_sweep_refuse_frozen_version();

-- A line says which version was looked at, by whom and when, whatever its writer says: what it opens is what it names.
CREATE FUNCTION forge_sweep_note_look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SELECT name, digest FROM %I.dataset_versions WHERE version_id = $1', TG_TABLE_SCHEMA)
        INTO NEW.version_name, NEW.digest USING NEW.dataset_version;
    IF NEW.digest IS NULL THEN
        RAISE EXCEPTION 'there is no dataset version of number %', NEW.dataset_version
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    NEW.db_user := session_user;
    NEW.looked_at := clock_timestamp();
    NEW.backend := pg_backend_pid();
    NEW.transaction := txid_current();
    RETURN NEW;
END $$;
CREATE TRIGGER noted BEFORE INSERT ON test_looks FOR EACH ROW EXECUTE FUNCTION forge_sweep_note_look();

CREATE FUNCTION forge_sweep_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'read_only_sql_transaction';
END $$;
CREATE TRIGGER whole BEFORE TRUNCATE ON dataset_versions
    FOR EACH STATEMENT EXECUTE FUNCTION forge_sweep_refuse_change('versions are dropped one by one');
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON test_looks
    FOR EACH STATEMENT EXECUTE FUNCTION forge_sweep_refuse_change('the ledger only grows');
CREATE TRIGGER fixed BEFORE UPDATE ON normalization_params
    FOR EACH STATEMENT EXECUTE FUNCTION forge_sweep_refuse_change('parameters are named by their content');
CREATE TRIGGER fixed BEFORE UPDATE OR TRUNCATE ON test_texts
    FOR EACH STATEMENT EXECUTE FUNCTION forge_sweep_refuse_change('versions are frozen');
"""

# Who is neither owner nor superuser sees what these policies show. A look counts once it is committed, and only for the
# session that wrote it: nobody reads test rows and then takes the line back.
LOOKED_AT = """
    SELECT l.dataset_version FROM test_looks l
    WHERE l.backend = pg_backend_pid() AND l.db_user = session_user
        AND l.transaction < txid_current() AND l.looked_at > clock_timestamp() - interval '1 hour'"""

SECURITY = f"""
ALTER TABLE training_features ENABLE ROW LEVEL SECURITY;
CREATE POLICY tuner ON training_features FOR SELECT TO forge_tuner USING (split <> 'test');
CREATE POLICY confirm ON training_features FOR SELECT TO forge_confirm USING (
    split <> 'test' OR dataset_version IN ({LOOKED_AT}));
ALTER TABLE test_texts ENABLE ROW LEVEL SECURITY;
CREATE POLICY confirm ON test_texts FOR SELECT TO forge_confirm USING (dataset_version IN ({LOOKED_AT}));
REVOKE ALL ON dataset_versions, normalization_params, training_features, test_looks, test_texts FROM PUBLIC;
GRANT SELECT ON dataset_versions, normalization_params, training_features, test_looks, alembic_version_forge_sweep
    TO forge_tuner, forge_confirm;
GRANT SELECT ON test_texts TO forge_confirm;
GRANT INSERT (dataset_version, run, purpose, who) ON test_looks TO forge_confirm;
"""


def upgrade() -> None:
    """Make the tables."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    for script in (TABLES, FREEZING, SECURITY):
        connection.execute(script)  # psycopg itself: these are scripts, and their % signs are PL/pgSQL's
