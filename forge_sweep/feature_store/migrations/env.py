"""What Alembic runs: the migrations in ``versions``, on the connection that `schema.init` opened."""

from __future__ import annotations

from alembic import context

from forge_sweep.feature_store.schema import REVISION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=REVISION_TABLE)
with context.begin_transaction():
    context.run_migrations()
