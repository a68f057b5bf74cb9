"""Tables of what is purged (`ondol.sql.purging`); the rest of the schema is in `ondol.sql.tables`."""

from __future__ import annotations

import sqlalchemy as sa

from ondol.sql.tables import metadata

_Id = sa.String(64)
_Time: sa.Double[float] = sa.Double()

purges = sa.Table(
    "purges",
    metadata,
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("finished_at", _Time, nullable=False),
    sa.Column("job_id", _Id, nullable=False),
)
"""How far each part of ended jobs is purged: everything up to this end, in the order of (finished_at, id), is gone."""

gone = sa.Table(
    "gone",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_id", _Id, nullable=False),
    sa.Column("gone_at", _Time, nullable=False),
)
"""Jobs and files that were purged, so that whoever asks for one is told when it went."""
sa.Index("ix_gone_gone_at", gone.c.gone_at)

store_garbage = sa.Table(
    "store_garbage",
    metadata,
    sa.Column("path", sa.String(256), primary_key=True),
    sa.Column("created_at", _Time, nullable=False),
)
"""Files of the store that no row names any more, written with the deletion of the row: they are deleted after it."""
