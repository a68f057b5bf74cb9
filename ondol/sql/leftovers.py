"""What SQL still needs of the store's files, for the collection of the rest."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from ondol.sql.tables import IS_RUNG, IS_TRAINING, IS_WAITING, jobs, publish_intents, versions
from ondol.sql.unit_of_work import UnitOfWork

_MOST_IDS = 500
_UNFINISHED = (
    IS_WAITING,
    IS_RUNG,
    jobs.c.session_id.is_not(None),
    sa.and_(IS_TRAINING, jobs.c.finished_at.is_(None)),
)
"""Every unfinished job, or a shard of it, is one of these, and each has a partial index: no finished job is read."""
SERVED = sa.union(*(sa.select(jobs.c.version_id).where(part) for part in _UNFINISHED))
"""Ids of the versions that unfinished jobs run on."""


def manifests_in_use(uow: UnitOfWork, *, grace_s: float) -> set[str]:
    """Digests of the files of versions that exist, were deleted less than `grace_s` ago, or serve an unfinished job."""
    served = set(uow.conn.execute(SERVED).scalars())
    query = sa.select(versions.c.id, versions.c.manifest_digest, versions.c.deleted_at)
    since = uow.now - grace_s
    return {
        row.manifest_digest
        for row in uow.conn.execute(query)
        if row.deleted_at is None or row.deleted_at > since or row.id in served
    }


def known_manifests(uow: UnitOfWork) -> set[str]:
    """Digests of the files of all versions that there ever were, and of those that somebody began to publish."""
    queries = (sa.select(versions.c.manifest_digest), sa.select(publish_intents.c.manifest_digest))
    return set(uow.conn.execute(sa.union(*queries)).scalars())


def forget_intents(uow: UnitOfWork, stored: Collection[str], *, older_than_s: float) -> None:
    """Forget begun publishes that are older and left no manifest among `stored`: it was never written, or has gone."""
    old = publish_intents.c.created_at < uow.now - older_than_s
    gone = set(uow.conn.execute(sa.select(publish_intents.c.manifest_digest).where(old)).scalars()).difference(stored)
    for part in _parts(gone):
        uow.conn.execute(sa.delete(publish_intents).where(old, publish_intents.c.manifest_digest.in_(part)))


def jobs_that_exist(uow: UnitOfWork, ids: Collection[str]) -> set[str]:
    """Those of the ids that have a row, of all projects."""
    found: set[str] = set()
    for part in _parts(ids):
        found.update(uow.conn.execute(sa.select(jobs.c.id).where(jobs.c.id.in_(part))).scalars())
    return found


def _parts(ids: Collection[str]) -> list[list[str]]:
    ordered = sorted(ids)
    return [ordered[start : start + _MOST_IDS] for start in range(0, len(ordered), _MOST_IDS)]
