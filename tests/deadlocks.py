"""Deadlocks on PostgreSQL, which the database ends and a Database hides by running the group again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def seen_deadlocks() -> Iterator[list[str]]:
    """Statements that PostgreSQL refused because transactions waited for each other in a circle."""
    seen: list[str] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlstate", None) == "40P01":
            seen.append(str(context.statement))

    sa.event.listen(sa.Engine, "handle_error", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "handle_error", note)
