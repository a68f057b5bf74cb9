"""Placement knows which versions a message asks for, whose shards it names, and how much memory a device has"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What the schema gains."""
    op.add_column("messages", sa.Column("versions", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("messages", sa.Column("parent_id", sa.String(length=64), nullable=True))
    op.add_column("sessions", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
