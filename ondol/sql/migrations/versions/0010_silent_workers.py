"""A session remembers that messages of its worker lapsed, and that it has claimed none since"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What the schema gains."""
    op.add_column("sessions", sa.Column("silent_since", sa.Double(), nullable=True))
