"""Shards are job rows with a parent; inputs may stand in the store; what `auto` means is known by engine"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_WAITING = sa.text("state = 'queued' AND message_id IS NULL AND kind != 'fine-tune' AND NOT is_sharded")
_INDEXES = (
    ("ix_jobs_waiting", ["priority", "run_after", "id"], _WAITING),
    ("ix_jobs_finished", ["finished_at"], sa.text("finished_at IS NOT NULL AND parent_id IS NULL")),
    ("ix_jobs_project", ["project_id", "id"], sa.text("parent_id IS NULL")),
    ("ix_jobs_parent", ["parent_id", "first_input"], sa.text("parent_id IS NOT NULL")),
    ("ix_jobs_batch", ["project_id", "id"], sa.text("batch IS NOT NULL")),
    ("ix_jobs_input_file", ["input_file_id"], sa.text("input_file_id IS NOT NULL")),
)


def upgrade() -> None:
    """What the schema gains."""
    op.drop_table("shards")  # nothing was ever written to it
    op.add_column("jobs", sa.Column("parent_id", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("first_input", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("num_open_shards", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("input_file_id", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("batch", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("job_inputs", sa.Column("blob_path", sa.String(length=256), nullable=True))
    op.add_column("job_inputs", sa.Column("blob_offset", sa.BigInteger(), nullable=True))
    op.add_column("job_inputs", sa.Column("blob_size", sa.BigInteger(), nullable=True))
    op.add_column("job_inputs", sa.Column("sha256", sa.String(length=64), nullable=True))
    op.drop_index("ix_jobs_waiting", table_name="jobs")
    op.drop_index("ix_jobs_finished", table_name="jobs")
    op.drop_index("ix_jobs_project", table_name="jobs")
    for name, columns, condition in _INDEXES:
        op.create_index(name, "jobs", columns, postgresql_where=condition, sqlite_where=condition)
    _forget_dtypes()


def _forget_dtypes() -> None:
    """What `auto` means is found again when it is first asked for."""
    op.drop_table("version_dtypes")
    op.create_table(
        "version_dtypes",
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("device_kind", sa.String(length=32), nullable=False),
        sa.Column("engine", sa.String(length=16), nullable=False),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("fidelity", sa.JSON(), nullable=False),
        sa.Column("is_packed", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("manifest_digest", "device_kind", "engine", name=op.f("pk_version_dtypes")),
    )
