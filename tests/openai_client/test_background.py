"""Work beside the requests is begun once a name, a few at a time, and ends with the process."""

from __future__ import annotations

import asyncio

import pytest

from api.background import Background

pytestmark = pytest.mark.unit


async def _some_turns() -> None:
    """Enough turns of the loop for all that can begin to begin."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_of_many_a_few_run_at_a_time_and_each_name_once() -> None:
    async def scene() -> tuple[list[int], list[int]]:
        background, may_end = Background(), asyncio.Event()
        begun: list[int] = []

        async def work(number: int) -> None:
            begun.append(number)
            await may_end.wait()

        for number in (0, 1, 2, 3, 0, 1):
            background.begin(f"batch {number}", lambda number=number: work(number))  # type: ignore[misc]  # bound at definition
        await _some_turns()
        first = list(begun)
        may_end.set()
        await _some_turns()
        await background.stop()
        return first, begun

    first, begun = asyncio.run(scene())
    assert first == [0, 1]
    assert begun == [0, 1, 2, 3]


def test_what_waits_for_room_ends_too() -> None:
    async def scene() -> list[int]:
        background = Background()
        begun: list[int] = []

        async def work(number: int) -> None:
            begun.append(number)
            await asyncio.Event().wait()

        for number in range(5):
            background.begin(str(number), lambda number=number: work(number))  # type: ignore[misc]  # bound at definition
        await _some_turns()
        await background.stop()
        return begun

    assert asyncio.run(scene()) == [0, 1]
