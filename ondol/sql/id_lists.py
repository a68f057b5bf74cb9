"""Conditions on lists of ids of any length whose SQL stays the same: it is built, parsed and planned once.

`IN` with a parameter an id makes another statement of each length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType

from ondol.sql.many_rows import text_array


class _IsListed(FunctionElement[bool]):
    """Whether a column's value is in the list that is bound."""

    type = sa.Boolean()
    inherit_cache = True

    def self_group(self, against: OperatorType | None = None) -> Self:  # noqa: ARG002  # SQLAlchemy's signature
        """As it is: SQLAlchemy would write `… = 1` for SQLite, which is not seen to be answered by an index."""
        return self


def is_listed(column: sa.ColumnElement[str], name: str) -> sa.ColumnElement[bool]:
    """Whether the column's value is one of those that `id_list` has bound to `name`."""
    return _IsListed(column, sa.bindparam(name, type_=sa.String))


def id_list(conn: Connection, ids: Iterable[str]) -> str:
    """The ids as the value of a parameter of `is_listed`."""
    return json.dumps(list(ids)) if conn.dialect.name == "sqlite" else text_array(ids)


@compiles(_IsListed, "sqlite")
def _for_sqlite(element: _IsListed, compiler: SQLCompiler, **options: Any) -> str:
    column, listed = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({listed}))"  # noqa: S608  # what SQLAlchemy has compiled


@compiles(_IsListed, "postgresql")
def _for_postgresql(element: _IsListed, compiler: SQLCompiler, **options: Any) -> str:
    column, listed = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = ANY (CAST({listed} AS text[]))"
