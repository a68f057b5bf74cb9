"""How far the clock of a worker's process is from the database's"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What the schema gains."""
    op.add_column("sessions", sa.Column("clock_ahead_s", sa.Double(), nullable=True))
