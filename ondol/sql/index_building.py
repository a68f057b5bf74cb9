"""Indexes that migrations build: on PostgreSQL beside readers and writers, on SQLite in the migration's transaction.

CREATE INDEX keeps writers out for as long as it takes, and after an ALTER TABLE in the same transaction readers too. So
PostgreSQL builds CONCURRENTLY, outside any transaction. What a crash leaves of that is an index that is INVALID, which
is kept up to date and used by no query: it is dropped and built again. One that was built whole before the crash is in
backups too: what brings those up to date, in one transaction, expects it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import OperationalError, PendingRollbackError

IS_CONCURRENT = "is_concurrent"
"""Attribute of Alembic's configuration: whether each migration has a transaction of its own, that may be ended."""
_WAIT = "SET lock_timeout = '5min'; SET statement_timeout = 0"
"""Building waits for transactions that are older than it, and keeps nobody waiting meanwhile."""
_AS_BEFORE = "SET lock_timeout = '{lock_timeout}'; SET statement_timeout = '{statement_timeout}'"
_IS_VALID = sa.text(
    "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = :name AND n.nspname = current_schema()"
)


@dataclass(frozen=True, slots=True)
class NewIndex:
    """An index on columns that the table has before the migration. `where`: the condition of a partial index.

    `replaces`: another index has this name; it stays until `replace_index` is called.
    """

    name: str
    table: str
    columns: Sequence[str]
    where: str | None = None
    replaces: bool = False

    @property
    def built_as(self) -> str:
        """Its name until it takes the place of the other one."""
        return f"{self.name}_new" if self.replaces else self.name


def build_indexes(*wanted: NewIndex) -> None:
    """Build those that are missing. First in a migration: on PostgreSQL it ends the transaction that stands before."""
    if not _is_concurrent():
        for index in wanted:
            if not index.replaces:
                _create(index, index.name, concurrently=False)
        return
    lost: OperationalError | None = None
    try:
        with op.get_context().autocommit_block():
            try:
                _build_all(wanted, op.get_bind())
            except OperationalError as exc:
                lost = exc
                raise
    except PendingRollbackError as exc:  # the block could not be ended over a connection that is gone
        raise lost or exc from exc


def replace_index(index: NewIndex) -> None:
    """Give an index that was built the name and the place of the one that it replaces; a matter of milliseconds."""
    op.drop_index(index.name, table_name=index.table)
    if _is_concurrent():
        op.execute(f'ALTER INDEX "{index.built_as}" RENAME TO "{index.name}"')
    else:
        op.drop_index(index.built_as, table_name=index.table, if_exists=True)
        _create(index, index.name, concurrently=False)


def _is_concurrent() -> bool:
    context = op.get_context()
    assert context.config is not None
    return context.dialect.name == "postgresql" and bool(context.config.attributes.get(IS_CONCURRENT))


def _build_all(wanted: Sequence[NewIndex], bind: sa.Connection) -> None:
    before = {
        name: str(bind.execute(sa.text("SELECT current_setting(:name)"), {"name": name}).scalar_one())
        for name in ("lock_timeout", "statement_timeout")
    }
    bind.exec_driver_sql(_WAIT)
    for index in wanted:
        _build(index, bind)
    bind.exec_driver_sql(_AS_BEFORE.format(**before))


def _build(index: NewIndex, bind: sa.Connection) -> None:
    is_valid = bind.execute(_IS_VALID, {"name": index.built_as}).scalar_one_or_none()
    if is_valid:
        return
    if is_valid is not None:
        op.drop_index(index.built_as, table_name=index.table, postgresql_concurrently=True)
    _create(index, index.built_as, concurrently=True)


def _create(index: NewIndex, name: str, *, concurrently: bool) -> None:
    where = None if index.where is None else sa.text(index.where)
    op.create_index(
        name,
        index.table,
        list(index.columns),
        postgresql_where=where,
        sqlite_where=where,
        if_not_exists=not concurrently,
        postgresql_concurrently=concurrently,
    )
