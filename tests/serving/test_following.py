"""Workers follow a moved alias without a restart: the new version is warm before the old one is let go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ondol.sql.records import VersionRecord
from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.serving.versions import tiny_versions
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

NAME = "tiny"
ALIAS = f"{NAME}@production"
NUM_CALLS = 1_000
NUM_CALLERS = 8
FOLLOW_LIMIT_S = 20
SLOW_CALL_S = 5.0


class Serving:
    """A warm worker and an api, and a model with two versions of different weights."""

    def __init__(self, cluster: Cluster, versions: list[VersionRecord]) -> None:
        self.cluster = cluster
        self.versions = versions
        self.http = httpx.Client(base_url=cluster.url, timeout=60, trust_env=False)

    def move(self, alias: str, number: int, *, expected: int | None) -> None:
        body = {"version": number, "expected": expected, "reason": "test"}
        self.http.put(f"/v1/models/{NAME}/aliases/{alias}", json=body).raise_for_status()

    def move_silently(self, alias: str, number: int) -> None:
        """By SQL alone: no worker is told."""
        project_id = self.versions[0].project_id
        self.cluster.database.write(lambda uow: uow.models.set_alias(project_id, NAME, alias, number))

    def call(self, model: str = ALIAS) -> str:
        """Reference of the version that answered."""
        answer = self.http.post("/v1/embeddings", json={"model": model, "input": "the fire burns below"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["model"])

    def warm(self) -> list[str]:
        [worker] = self.http.get("/v1/workers").raise_for_status().json()["data"]
        found: list[str] = worker["warm"]
        return found

    def wait_warm(self, *refs: str) -> None:
        wait_until(lambda: self.warm() == list(refs), within_s=FOLLOW_LIMIT_S, what=f"{refs} to be what is warm")

    def log(self) -> str:
        return self.cluster.log_of("worker0")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_version: Path) -> list[Path]:
    return tiny_versions(tiny_version, tmp_path_factory.mktemp("versions"), num=2)


Start = Callable[..., Serving]


@pytest.fixture
def start(tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, folders: list[Path]) -> Iterator[Start]:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as cluster:
        made: list[Serving] = []

        def run(**settings: str) -> Serving:
            cluster.environment.update(settings, ONDOL_DTYPE="float32")
            versions = [cluster.publish(folder, NAME) for folder in folders]
            cluster.start_api()
            cluster.start_worker(0)
            made.append(Serving(cluster, versions))
            return made[-1]

        yield run
        for serving in made:
            serving.http.close()


def test_a_moved_alias_is_followed_and_rolled_back_while_calls_go_on(start: Start) -> None:
    serving = start()
    serving.move("production", 1, expected=None)
    assert serving.call() == f"{NAME}:1"
    serving.wait_warm(f"{NAME}:1")

    moved_at: list[float] = []
    answered: list[tuple[float, float, str]] = []
    lock = threading.Lock()

    def one_call(i: int) -> None:
        if i == NUM_CALLS // 4:
            serving.move("production", 2, expected=1)
            moved_at.append(time.monotonic())
        began = time.monotonic()
        ref = serving.call()
        with lock:
            answered.append((began, time.monotonic(), ref))

    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        list(callers.map(one_call, range(NUM_CALLS)))  # raises what any of the calls raised
    assert len(answered) == NUM_CALLS
    assert {ref for _, _, ref in answered} <= {f"{NAME}:1", f"{NAME}:2"}
    wait_until(lambda: serving.call() == f"{NAME}:2", within_s=FOLLOW_LIMIT_S, what="the new version to answer")
    news = [ended for _, ended, ref in answered if ref == f"{NAME}:2"]
    if news:
        print(f"followed after {min(news) - moved_at[0]:.3f} s")
    slowest = max(ended - began for began, ended, _ in answered)
    print(f"slowest of {NUM_CALLS} calls: {slowest:.3f} s")
    assert slowest < SLOW_CALL_S, "no call waited for a cold start"
    serving.wait_warm(f"{NAME}:1", f"{NAME}:2")  # `default` still names the old one
    assert "alias.followed" in serving.log()

    serving.move("default", 2, expected=1)
    serving.wait_warm(f"{NAME}:2")
    assert "alias.old_version_unloaded" in serving.log()

    serving.move("production", 1, expected=2)
    wait_until(lambda: serving.call() == f"{NAME}:1", within_s=FOLLOW_LIMIT_S, what="the rollback to answer")
    serving.wait_warm(f"{NAME}:1", f"{NAME}:2")


def test_a_preloaded_alias_is_followed_without_a_wake_up_and_what_is_asked_for_stays(start: Start) -> None:
    serving = start(ONDOL_MODELS=ALIAS)
    assert serving.warm() == [], "the setting names an alias that is not there yet"
    serving.move_silently("production", 1)
    serving.wait_warm(f"{NAME}:1")
    serving.move_silently("production", 2)
    serving.move_silently("default", 2)

    def both() -> bool:
        serving.call(f"{NAME}:1")  # somebody names the old version itself
        return serving.warm() == [f"{NAME}:1", f"{NAME}:2"]

    wait_until(both, within_s=FOLLOW_LIMIT_S, what="the new version to be warm beside the old one")
    serving.wait_warm(f"{NAME}:2")
    assert serving.log().count("preload.pinned") == 2


def test_the_old_version_makes_room_where_the_cache_holds_only_one(start: Start, folders: list[Path]) -> None:
    size_bytes = sum(path.stat().st_size for path in folders[0].rglob("*") if path.is_file())
    serving = start(ONDOL_CACHE_MAX_GB=f"{1.5 * size_bytes / 1e9:.9f}")
    assert serving.call(NAME) == f"{NAME}:1"
    serving.wait_warm(f"{NAME}:1")
    serving.move("default", 2, expected=1)
    serving.wait_warm(f"{NAME}:2")
    assert "no room for" in serving.log()
    assert serving.call(NAME) == f"{NAME}:2"
