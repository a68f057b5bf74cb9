"""Pages of jobs that are few among many, and of a project's files, are found by indexes of their own"""

from __future__ import annotations

from ondol.sql.index_building import NewIndex, build_indexes

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_PAGE = ("project_id", "id")
_INDEXES = (
    NewIndex("ix_jobs_rare", "jobs", _PAGE, where="kind IN ('fine-tune', 'import') AND parent_id IS NULL"),
    NewIndex("ix_jobs_failed", "jobs", _PAGE, where="state = 'failed' AND parent_id IS NULL"),
    NewIndex("ix_jobs_cancelled", "jobs", _PAGE, where="state = 'cancelled' AND parent_id IS NULL"),
    NewIndex("ix_files_project", "files", _PAGE),
)


def upgrade() -> None:
    """What the schema gains."""
    build_indexes(*_INDEXES)
