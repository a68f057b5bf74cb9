"""Whether somebody works with a database, and whether it holds anything that could be lost, ours or others'."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ondol.sql.keys import DEFAULT_PROJECT
from ondol.sql.tables import api_keys, files, jobs, leaders, metadata, models, projects, sessions, usage
from ondol.sql.unit_of_work import UnitOfWork

OURS = frozenset({*metadata.tables, "alembic_version", "shards"})
"""Names of our tables, of releases before this one too."""
_TELLING = (jobs, files, models, api_keys, usage)


def tables_of_others(conn: Connection) -> list[str]:
    """Names of the tables that are not ours: another application's, or those of a newer release.

    Names such as `jobs` and `sessions` tell nothing where no migration of ours has run.
    """
    found = set(sa.inspect(conn).get_table_names())
    return sorted(found - OURS if "alembic_version" in found else found)


def is_live(uow: UnitOfWork) -> str:
    """Who works with it, as far as leases tell: workers and a reconciler; empty if nobody. An api leaves no lease."""
    query = sa.select(sessions.c.worker).where(sessions.c.ended_at.is_(None), sessions.c.expires_at > uow.now)
    found = [f"worker {name}" for name in uow.conn.execute(query.order_by(sessions.c.worker)).scalars()]
    leads = sa.select(leaders.c.name).where(leaders.c.name == "reconciler", leaders.c.expires_at > uow.now)
    if uow.conn.execute(leads).first() is not None:
        found.append("a reconciler")
    return ", ".join(found)


def what_it_holds(uow: UnitOfWork) -> str:
    """What would be lost with it, in words; empty for a schema without content. The default project is none."""
    held = []
    for table in _TELLING:
        if uow.conn.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None:
            held.append(table.name)
    others = sa.select(projects.c.id).where(projects.c.name != DEFAULT_PROJECT).limit(1)
    if uow.conn.execute(others).first() is not None:
        held.append("projects")
    return ", ".join(held)
