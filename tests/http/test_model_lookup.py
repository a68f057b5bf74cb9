"""Requests that come together look their models up together, and still see what was committed before they came."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from api.database import AsyncDatabase
from api.model_lookup import ModelLookup
from ondol.contract.errors import ModelNotFound
from ondol.contract.model_ref import ModelRef
from ondol.sql.unit_of_work import UnitOfWork

pytestmark = pytest.mark.unit

NUM_CALLERS = 20


class Reads:
    """A database whose models are all unknown; each read waits until it is let go on."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self.models = self
        self.has_begun = asyncio.Event()
        self.may_go_on = threading.Event()

    async def read(self, work: Callable[[Any], Any]) -> Any:
        self.asked.append([])
        self.has_begun.set()
        found = work(cast(UnitOfWork, self))
        await asyncio.to_thread(self.may_go_on.wait)
        return found

    def resolve(self, ref: ModelRef, project_id: str) -> None:
        self.asked[-1].append((str(ref), project_id))
        raise ModelNotFound(f"no model {ref}")


def test_who_asks_during_a_read_is_answered_by_the_next_one() -> None:
    reads = Reads()
    asyncio.run(_ask(reads))
    assert [sorted(each) for each in reads.asked] == [[("a", "p")], [("a", "p"), ("a", "q"), ("b", "p")]]


async def _ask(reads: Reads) -> None:
    lookup = ModelLookup(cast(AsyncDatabase, reads))
    first = asyncio.create_task(lookup.resolve_all(["a"], "p"))
    await reads.has_begun.wait()
    wanted = [(["a"], "p"), (["b", "a"], "p"), (["a"], "q")]
    others = [asyncio.create_task(lookup.resolve_all(*wanted[i % 3])) for i in range(NUM_CALLERS)]
    await asyncio.sleep(0)
    others.pop().cancel()
    reads.may_go_on.set()
    for found in [await first, *await asyncio.gather(*others)]:
        assert found and all(isinstance(error, ModelNotFound) for error in found.values())
