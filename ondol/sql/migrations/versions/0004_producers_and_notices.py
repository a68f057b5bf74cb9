"""Who is told of a job's end: Celery producers by their task's id, webhooks; the message of each attempt"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_HAS_TASK = sa.text("task_id IS NOT NULL")
_WAITING = sa.text("status = 'waiting'")
_HOLDING = sa.text("kind = 'fine-tune' AND state = 'cancelled' AND device_released_at IS NULL")


def upgrade() -> None:
    """What the schema gains."""
    op.add_column("projects", sa.Column("webhook_secret", sa.String(length=128), nullable=True))
    op.add_column("jobs", sa.Column("webhook", sa.String(length=2048), nullable=True))
    op.add_column("jobs", sa.Column("ignores_result", sa.Boolean(), nullable=True))
    op.add_column("attempts", sa.Column("message_id", sa.String(length=64), nullable=True))
    op.create_index(
        "ix_jobs_task",
        "jobs",
        ["project_id", "task_id"],
        unique=True,
        postgresql_where=_HAS_TASK,
        sqlite_where=_HAS_TASK,
    )
    op.create_index(  # databases that came to 0003 before it was released lack it
        "ix_jobs_holding_a_device",
        "jobs",
        ["id"],
        postgresql_where=_HOLDING,
        sqlite_where=_HOLDING,
        if_not_exists=True,
    )
    op.create_table(
        "notices",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("num_tries", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.Double(), nullable=False),
        sa.Column("last_try_at", sa.Double(), nullable=True),
        sa.Column("last_answer", sa.String(length=512), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("accepted_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE", name=op.f("fk_notices_job_id")),
        sa.PrimaryKeyConstraint("job_id", "seq", "channel", name=op.f("pk_notices")),
        sa.UniqueConstraint("id", name=op.f("uq_notices_id")),
    )
    op.create_index(
        "ix_notices_waiting",
        "notices",
        ["channel", "next_try_at"],
        postgresql_where=_WAITING,
        sqlite_where=_WAITING,
    )
