"""What SQL still needs of the store's files, for the collection of the rest."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from ondol.contract.states import TERMINAL
from ondol.sql.tables import jobs, versions
from ondol.sql.unit_of_work import UnitOfWork

_MOST_IDS = 500


def manifests_in_use(uow: UnitOfWork, *, grace_s: float) -> set[str]:
    """Digests of the files of versions that exist, were deleted less than `grace_s` ago, or serve an unfinished job."""
    is_served = sa.exists().where(
        jobs.c.version_id == versions.c.id, jobs.c.state.not_in([str(state) for state in TERMINAL])
    )
    wanted = sa.or_(versions.c.deleted_at.is_(None), versions.c.deleted_at > uow.now - grace_s, is_served)
    return set(uow.conn.execute(sa.select(versions.c.manifest_digest).where(wanted)).scalars())


def known_manifests(uow: UnitOfWork) -> set[str]:
    """Digests of the files of all versions that there ever were."""
    return set(uow.conn.execute(sa.select(versions.c.manifest_digest)).scalars())


def jobs_that_exist(uow: UnitOfWork, ids: Collection[str]) -> set[str]:
    """Those of the ids that have a row, of all projects."""
    ordered = sorted(ids)
    found: set[str] = set()
    for start in range(0, len(ordered), _MOST_IDS):
        query = sa.select(jobs.c.id).where(jobs.c.id.in_(ordered[start : start + _MOST_IDS]))
        found.update(uow.conn.execute(query).scalars())
    return found
