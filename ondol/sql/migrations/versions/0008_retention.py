"""What is purged, how far, and what of it is still in the store; indexes for what is purged by its age"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ondol.sql.index_building import NewIndex, build_indexes

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INDEXES = (
    NewIndex("ix_files_created_at", "files", ("created_at",)),
    NewIndex("ix_files_expires_at", "files", ("expires_at",), where="expires_at IS NOT NULL"),
    NewIndex("ix_jobs_open_fine_tunes", "jobs", ("id",), where="kind = 'fine-tune' AND finished_at IS NULL"),
    NewIndex("ix_sessions_ended_at", "sessions", ("ended_at",), where="ended_at IS NOT NULL"),
)


def upgrade() -> None:
    """What the schema gains."""
    build_indexes(*_INDEXES)
    for part in ("inputs", "results", "events"):
        op.add_column("jobs", sa.Column(f"{part}_gone_at", sa.Double(), nullable=True))
    op.create_table(
        "purges",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_purges")),
    )
    op.create_table(
        "gone",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("gone_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gone")),
    )
    op.create_index("ix_gone_gone_at", "gone", ["gone_at"])
    op.create_table(
        "store_garbage",
        sa.Column("path", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_store_garbage")),
    )
