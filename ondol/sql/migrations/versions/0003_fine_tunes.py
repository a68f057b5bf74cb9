"""Fine-tunes: their checkpoints, what was resolved for them, where they wait; what an alias pointed to before"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_WAITING = sa.text("state = 'queued' AND message_id IS NULL AND kind != 'fine-tune'")
_TRAINING = sa.text("kind = 'fine-tune' AND state IN ('queued', 'validating_files')")
_HOLDING = sa.text("kind = 'fine-tune' AND state = 'cancelled' AND device_released_at IS NULL")


def upgrade() -> None:
    """What the schema gains."""
    op.add_column("jobs", sa.Column("resolved", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("jobs", sa.Column("pause_requested_at", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("device_released_at", sa.Double(), nullable=True))
    op.drop_index("ix_jobs_waiting", table_name="jobs")
    op.create_index(
        "ix_jobs_waiting", "jobs", ["priority", "run_after", "id"], postgresql_where=_WAITING, sqlite_where=_WAITING
    )
    op.create_index("ix_jobs_training", "jobs", ["run_after", "id"], postgresql_where=_TRAINING, sqlite_where=_TRAINING)
    op.create_index("ix_jobs_holding_a_device", "jobs", ["id"], postgresql_where=_HOLDING, sqlite_where=_HOLDING)
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("is_best", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("deleted_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE", name=op.f("fk_checkpoints_job_id")),
        sa.PrimaryKeyConstraint("job_id", "step", name=op.f("pk_checkpoints")),
    )
    op.add_column("alias_history", sa.Column("previous_version_id", sa.String(length=64), nullable=True))
    op.create_index("ix_alias_history_created_at", "alias_history", ["created_at"])
