"""Which manifests publishes are about to write, so that one that breaks off leaves no stranger in the store"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What the schema gains."""
    op.create_table(
        "publish_intents",
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("manifest_digest", name=op.f("pk_publish_intents")),
    )
