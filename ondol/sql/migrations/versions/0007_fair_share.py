"""Projects have weights and limits of their own; waiting jobs are found by project, and what each was given is kept"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ondol.sql.index_building import NewIndex, build_indexes, replace_index

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_WAITING = NewIndex(
    "ix_jobs_waiting",
    "jobs",
    ("priority", "project_id", "run_after", "id"),
    where="state = 'queued' AND message_id IS NULL AND kind != 'fine-tune' AND NOT is_sharded",
    replaces=True,
)


def upgrade() -> None:
    """What the schema gains."""
    build_indexes(_WAITING)
    op.add_column("projects", sa.Column("weight", sa.Double(), nullable=False, server_default="1"))
    op.add_column("projects", sa.Column("max_queued_jobs", sa.BigInteger(), nullable=True))
    op.add_column("projects", sa.Column("max_queued_tokens", sa.BigInteger(), nullable=True))
    op.add_column("messages", sa.Column("project_id", sa.String(length=64), nullable=True))
    op.create_table(
        "shares",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("priority", sa.String(length=16), nullable=False),
        sa.Column("served", sa.Double(), nullable=False),
        sa.Column("rung_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "priority", name=op.f("pk_shares")),
    )
    replace_index(_WAITING)
