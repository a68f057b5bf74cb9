"""Index waiting jobs in the order of ringing, and finished jobs by their end"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_WAITING = sa.text("state = 'queued' AND message_id IS NULL")
_FINISHED = sa.text("finished_at IS NOT NULL")


def upgrade() -> None:
    """What the schema gains."""
    op.drop_index("ix_jobs_waiting", table_name="jobs")
    op.create_index(
        "ix_jobs_waiting", "jobs", ["priority", "run_after", "id"], postgresql_where=_WAITING, sqlite_where=_WAITING
    )
    op.create_index("ix_jobs_finished", "jobs", ["finished_at"], postgresql_where=_FINISHED, sqlite_where=_FINISHED)
