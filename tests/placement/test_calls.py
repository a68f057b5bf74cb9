"""Calls go to a warm worker; a cold model is loaded by one worker, a hot one by one more at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from api.database import AsyncDatabase
from api.worker_choice import HOT_CALLS, HOT_WITHIN_S, LOADING_LIMIT_S, SLOW_WAIT_S, WorkerChooser
from ondol.contract.errors import NotReady
from ondol.sql.records import VersionRecord
from tests.job_fixtures import open_database

pytestmark = pytest.mark.integration

VERSION = VersionRecord(
    id="ver_1",
    model_id="mod_1",
    project_id="prj_1",
    name="a",
    number=1,
    task="embedding",
    manifest_digest="d" * 64,
    size_bytes=1000,
    spec={},
    aliases=(),
    job_id=None,
    lineage={},
    created_at=0.0,
)


class House:
    """Workers in a database, and a chooser whose clock a test sets."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)
        self.calls: Counter[str] = Counter()
        self.now = 100.0
        self.async_database = AsyncDatabase(self._database)
        self.chooser = WorkerChooser(
            self.async_database,
            device="auto",
            in_flight=lambda name: self.calls[name],
            clock=lambda: self.now,
            sessions_max_age_s=0.0,
        )
        self._ids: dict[str, str] = {}
        self._loop = asyncio.Runner()

    def worker(self, name: str, *warm: str, memory_bytes: int | None = None) -> None:
        """A worker, or what is warm on it from now on."""
        if name not in self._ids:
            self._ids[name] = self._database.write(
                lambda uow: uow.sessions.open(
                    worker=name, device=name, device_kind="cpu", host="h", pid=1, lease_s=99, memory_bytes=memory_bytes
                )
            )
        self._database.write(lambda uow: uow.sessions.renew(self._ids[name], lease_s=99, is_ready=True, warm=warm))

    def end(self, name: str) -> None:
        """The worker stops."""
        self._database.write(lambda uow: uow.sessions.stop(self._ids.pop(name), reason="stopped"))

    def choose(self) -> str:
        """The name of the worker chosen."""
        return self._loop.run(self.chooser.choose(VERSION)).worker

    def slow_calls(self, num: int = HOT_CALLS) -> list[str]:
        """Whom copies of so many slow calls go to."""
        chosen = self._loop.run(self.chooser.choose(VERSION))
        copies = [self._loop.run(self.chooser.place_for_copy(VERSION, chosen, SLOW_WAIT_S + 0.1)) for _ in range(num)]
        return [copy.worker for copy in copies if copy is not None]

    def close(self) -> None:
        """Let go of the database."""
        self._loop.run(self.async_database.close())
        self._loop.close()


@pytest.fixture
def house(sqlite_url: str) -> Iterator[House]:
    """An empty house."""
    made = House(sqlite_url)
    yield made
    made.close()


def test_a_warm_worker_answers_the_least_loaded_first(house: House) -> None:
    for name, warm in (("w1", ()), ("w2", ("a:1",)), ("w3", ("a:1",))):
        house.worker(name, *warm)
    house.calls.update(w2=3, w3=2)
    assert house.choose() == "w3"


def test_nobody_is_ready(house: House) -> None:
    with pytest.raises(NotReady):
        house.choose()


def test_a_cold_version_is_loaded_by_one_worker(house: House) -> None:
    for name in ("w1", "w2", "w3"):
        house.worker(name)
    chosen = []
    for _ in range(5):
        chosen.append(house.choose())
        house.calls[chosen[-1]] += 1
    assert len(set(chosen)) == 1
    house.end(chosen[0])
    assert house.choose() != chosen[0], "who loaded it is gone"
    house.now += LOADING_LIMIT_S + 1
    assert house.choose() in ("w1", "w2", "w3")


def test_a_cold_version_goes_where_there_is_room_for_it(house: House) -> None:
    house.worker("w1", memory_bytes=10)
    house.worker("w2", memory_bytes=100)
    assert house.choose() == "w2", "too large for all: the largest says so"
    house.worker("w3", "b:1", memory_bytes=5000)
    house.now += LOADING_LIMIT_S + 1
    assert house.choose() == "w3"


def test_a_hot_version_is_loaded_by_one_more_worker_at_a_time(house: House) -> None:
    house.worker("w1", "a:1")
    house.worker("w2")
    house.worker("w3")
    assert house.slow_calls(HOT_CALLS - 1) == []
    assert house.slow_calls(1) == ["w2"]
    assert house.slow_calls(5 * HOT_CALLS) == [], "one is loading"
    assert house.choose() == "w1", "nobody waits for it"
    house.worker("w2", "a:1")
    house.calls["w1"] = 1
    assert house.choose() == "w2"
    assert house.slow_calls() == ["w3"]


def test_slow_calls_far_apart_make_nothing_hot(house: House) -> None:
    house.worker("w1", "a:1")
    house.worker("w2")
    for _ in range(3 * HOT_CALLS):
        assert house.slow_calls(1) == []
        house.now += HOT_WITHIN_S


def test_a_call_that_waited_for_the_model_itself_is_not_slow(house: House) -> None:
    house.worker("w1")
    house.worker("w2")
    assert house.slow_calls(3 * HOT_CALLS) == []


def test_a_version_that_all_hold_is_copied_nowhere(house: House) -> None:
    house.worker("w1", "a:1")
    house.worker("w2", "a:1")
    assert house.slow_calls(3 * HOT_CALLS) == []
