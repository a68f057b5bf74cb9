"""What Flower remembers: within bounds, over restarts, through outages of Redis, and whatever its file holds."""

from __future__ import annotations

import contextlib
import os
import shelve
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from celery import Celery
from tornado.ioloop import IOLoop

from ondol.broker.celery_app import make_celery_app
from ondol.control.flower.listening import Listener
from tests.servers import RedisServer
from tests.waiting import wait_until

START_LIMIT_S = 60
STOP_LIMIT_S = 20
ROOT = Path(__file__).parents[2]
PASSWORD = "a password for this test"


def remembering(folder: Path, *, max_tasks: int = 100) -> Listener:
    """A listener that hears nothing: it only remembers."""
    app = make_celery_app("redis://127.0.0.1:1/0")
    with contextlib.closing(IOLoop(make_current=False)) as loop:
        return Listener(app, loop, state_file=folder / "flower" / "state", max_tasks=max_tasks)


def tell(listener: Listener, num: int) -> None:
    for number in range(num):
        event = {"type": "task-received", "hostname": "cpu0@h", "uuid": f"msg_{number}", "timestamp": 1.0 + number}
        listener.state.event({**event, "local_received": 1.0, "clock": number, "name": "ondol.embedding"})


@pytest.mark.unit
def test_memory_is_bounded_and_comes_back(tmp_path: Path) -> None:
    listener = remembering(tmp_path, max_tasks=50)
    tell(listener, 200)
    assert len(listener.state.tasks) <= 50
    listener.save_state()
    again = remembering(tmp_path, max_tasks=50)
    assert set(again.state.tasks) == set(listener.state.tasks)
    assert "msg_199" in again.state.tasks


@pytest.mark.unit
@pytest.mark.parametrize("content", [b"", b"no such format", b"\x80\x04cnot.there\nName\n."])
def test_a_file_that_cannot_be_read_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    listener = remembering(tmp_path)
    tell(listener, 1)
    listener.save_state()
    files = list((tmp_path / "flower").iterdir())
    for path in files:
        path.write_bytes(content)
    fresh = remembering(tmp_path)
    assert not fresh.state.tasks
    tell(fresh, 1)
    fresh.save_state()
    assert len(remembering(tmp_path).state.tasks) == 1


@pytest.mark.unit
def test_a_file_of_somebody_else_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "flower").mkdir()
    with shelve.open(str(tmp_path / "flower" / "state")) as foreign:
        foreign["events"] = SomethingElse()
    assert not remembering(tmp_path).state.tasks
    assert list((tmp_path / "flower").glob("*.corrupt"))


class SomethingElse:
    """What another program might have left: it even has a counter."""

    counter: dict[str, int] = {}  # noqa: RUF012 - read by the library, never written


class FlowerProcess:
    """`ondol flower` as a person starts it; `close()` ends it."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "ONDOL_DATA_DIR": str(folder / "data"),
            "ONDOL_REDIS_URL": redis_url,
            "ONDOL_FLOWER_PORT": "0",
            "ONDOL_FLOWER_PASSWORD": PASSWORD,
            "PYTHONPATH": str(ROOT),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        file = self._folder / "data" / "run" / "flower.url"
        with (self._folder / "flower.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ondol.cli.main", "flower"], env=self._environment, stdout=log, stderr=log
            )
        wait_until(file.exists, within_s=START_LIMIT_S, what="Flower to listen")
        self.url = file.read_text().strip()

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_LIMIT_S)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(STOP_LIMIT_S)

    def knows(self, task_id: str) -> bool:
        answer = httpx.get(f"{self.url}/api/tasks", auth=("ondol", PASSWORD), timeout=30, trust_env=False)
        return task_id in answer.raise_for_status().json()


@pytest.fixture
def flower(tmp_path: Path, empty_redis: RedisServer) -> Iterator[FlowerProcess]:
    process = FlowerProcess(tmp_path, empty_redis.url)
    yield process
    process.close()


def announcing(redis_url: str) -> Callable[[], str]:
    """A function that sends a task, with its event, and gives its id."""

    def send() -> str:
        app = Celery("elsewhere", broker=redis_url, set_as_current=False)
        app.conf.task_send_sent_event = True
        task_id = str(app.send_task("ondol.embedding", queue="elsewhere").id)
        app.close()
        return task_id

    return send


@pytest.mark.chaos
def test_it_outlives_redis_and_remembers_over_its_own_restart(flower: FlowerProcess, empty_redis: RedisServer) -> None:
    flower.start()
    heard: list[str] = []
    send = announcing(empty_redis.url)

    def is_heard() -> bool:
        """Events are told to whoever listens: one that was sent before Flower did is lost."""
        heard.append(send())
        return flower.knows(heard[-1])

    wait_until(is_heard, within_s=START_LIMIT_S, what="Flower to hear an event")
    first = heard[-1]
    empty_redis.restart()
    wait_until(is_heard, within_s=START_LIMIT_S, what="Flower to hear an event after Redis came back")
    empty_redis.stop()
    try:
        assert flower.stop() == 0
    finally:
        empty_redis.start()
    assert not (flower._folder / "data" / "run" / "flower.url").exists()
    flower.start()
    assert flower.knows(first)
    assert flower.stop() == 0
