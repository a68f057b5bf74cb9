"""Alembic's environment: migrations run over the connection that `ondol.sql.migrate` hands in.

In the transaction that it has begun, or in one each where it has begun none.
"""

from __future__ import annotations

from alembic import context

from ondol.sql.index_building import IS_CONCURRENT
from ondol.sql.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=bool(context.config.attributes.get(IS_CONCURRENT)),
)
with context.begin_transaction():
    context.run_migrations()
