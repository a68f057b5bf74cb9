"""First answers by Idempotency-Key, written in the transaction of what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ondol.contract.errors import IdempotencyMismatch
from ondol.sql.tables import idempotency_keys

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


class IdempotencyRepository:
    """Keys of a project with the digest of their first body and the answer to it."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def find(self, project_id: str, key: str, body_sha256: str) -> tuple[int, bytes] | None:
        """Status and body of the first answer; None for a new key; IdempotencyMismatch for another body."""
        query = sa.select(idempotency_keys).where(
            idempotency_keys.c.project_id == project_id, idempotency_keys.c.key == key
        )
        row = self._conn.execute(query).one_or_none()
        if row is None:
            return None
        if row.body_sha256 != body_sha256:
            raise IdempotencyMismatch(
                "this Idempotency-Key was used before with another body; use a new key for a new request"
            )
        return row.status, bytes(row.answer)

    def reserve(self, project_id: str, key: str, body_sha256: str) -> bool:
        """Take the key for this transaction; False if somebody has it (then `find` tells what was answered).

        Waits for another transaction that holds the key uncommitted.
        """
        insert = sqlite.insert if self._uow.is_sqlite else postgresql.insert
        row = {"project_id": project_id, "key": key, "body_sha256": body_sha256, "status": 0, "answer": b""}
        statement = insert(idempotency_keys).values(**row, created_at=self._uow.now).on_conflict_do_nothing()
        return self._conn.execute(statement.returning(idempotency_keys.c.key)).one_or_none() is not None

    def answer(self, project_id: str, key: str, *, status: int, answer: bytes) -> None:
        """Keep the answer under a key reserved in this transaction."""
        self._conn.execute(
            sa.update(idempotency_keys)
            .where(idempotency_keys.c.project_id == project_id, idempotency_keys.c.key == key)
            .values(status=status, answer=answer)
        )

    def forget(self, project_id: str, key: str) -> None:
        """Free the key."""
        self._conn.execute(
            sa.delete(idempotency_keys).where(
                idempotency_keys.c.project_id == project_id, idempotency_keys.c.key == key
            )
        )
