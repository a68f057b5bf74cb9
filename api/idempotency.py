"""First answers: what an Idempotency-Key was answered is kept in the transaction of what it made, and given again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from api.services import Services
from ondol.contract.errors import DatabaseUnavailable, IdempotencyInFlight, OndolError
from ondol.sql.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer; `is_replay`: it was given before."""

    status: int
    body: bytes
    is_replay: bool = False


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request's Idempotency-Key with the digest of its route and body."""

    project_id: str
    key: str
    digest: str


Make = Callable[[UnitOfWork], Answer]
Prepare = Callable[[ExitStack], Awaitable[Make]]
"""What it enters into the stack is let go of when the answer is there, or cannot be."""


async def answer_once(services: Services, keyed: KeyedRequest | None, prepare: Prepare) -> Answer:
    """The answer that `prepare` and what it returns make in one transaction, or the first answer to this key.

    A refusal keeps nothing: the key stays free. Without a key, a write that may have been done is not to be repeated.
    """
    with ExitStack() as held:
        try:
            make = await prepare(held)
        except DatabaseUnavailable:
            raise  # the first answer would be asked of the same database
        except OndolError:
            # What was accepted once is answered as it was then, even if it would be refused now.
            first = await services.database.read(lambda uow: _find(uow, keyed)) if keyed else None
            if first is None:
                raise
            return first
        try:
            return await services.database.write(lambda uow: _answer(uow, keyed, make))
        except DatabaseUnavailable as exc:
            exc.must_not_repeat = keyed is None and exc.may_be_done
            raise


def _answer(uow: UnitOfWork, keyed: KeyedRequest | None, make: Make) -> Answer:
    if keyed is None:
        return make(uow)
    first = _find(uow, keyed)
    if first is not None:
        return first
    if not uow.idempotency.reserve(keyed.project_id, keyed.key, keyed.digest):
        first = _find(uow, keyed)
        if first is None:
            raise IdempotencyInFlight("the first request with this Idempotency-Key is still being answered")
        return first
    answer = make(uow)
    uow.idempotency.answer(keyed.project_id, keyed.key, status=answer.status, answer=answer.body)
    return answer


def _find(uow: UnitOfWork, keyed: KeyedRequest | None) -> Answer | None:
    assert keyed is not None
    found = uow.idempotency.find(keyed.project_id, keyed.key, keyed.digest)
    return None if found is None else Answer(*found, is_replay=True)
