"""A store that hangs holds up what needs the store, and nothing else; the process can still be ended."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from api.threads import STORE_THREADS, DaemonThreads
from api.verified_content import verified_content
from tests.http.api_process import ApiProcess, Member
from tests.http.conftest import StartApi
from tests.http.peer_worker import PeerWorker
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

NUM_READERS = STORE_THREADS + 8


@pytest.fixture
def hanging(start_api: StartApi, sqlite_url: str) -> Iterator[tuple[ApiProcess, Member, Path]]:
    """An api, somebody, and a blob of which nobody ever gets a byte."""
    api = start_api(sqlite_url)
    with closing(api.member()) as member:
        form = {"file": ("a.jsonl", b'{"text": "a", "label": "b"}\n')}
        added = member.http.post("/v1/files", files=form, data={"purpose": "fine-tune"}).raise_for_status().json()
        pipe = Path(api.store_url.removeprefix("file://")) / "files" / added["id"]
        pipe.unlink()
        os.mkfifo(pipe)
        yield api, member, pipe
        with suppress(OSError):  # whoever waits for the writer goes on
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def test_a_store_that_hangs_holds_up_nothing_else(
    hanging: tuple[ApiProcess, Member, Path], redis_server: RedisServer
) -> None:
    api, member, pipe = hanging
    refused: list[httpx.Response] = []

    def read_content() -> None:
        with suppress(httpx.HTTPError):  # cut off when the api ends
            refused.append(many.get(f"/v1/files/{pipe.name}/content", timeout=120))

    with ExitStack() as stack:
        peer = stack.enter_context(closing(PeerWorker(api.database, redis_server.url, "beside@test")))
        limits = httpx.Limits(max_connections=NUM_READERS)
        headers = {"authorization": f"Bearer {member.secret}"}
        many = stack.enter_context(httpx.Client(base_url=api.url, headers=headers, limits=limits, trust_env=False))
        readers = stack.enter_context(ThreadPoolExecutor(NUM_READERS))
        for _ in range(NUM_READERS):
            readers.submit(read_content)
        too_many = NUM_READERS - STORE_THREADS
        wait_until(lambda: len(refused) >= too_many, within_s=60, what="readers to be told that the store is busy")
        answers = [(answer.status_code, answer.json()["error"]["code"]) for answer in refused]
        assert answers == [(503, "store_unavailable")] * too_many and int(refused[0].headers["retry-after"]) >= 1
        assert member.http.get("/readyz").status_code == 200
        assert member.http.get("/metrics").status_code == 200
        body = {"model": "tiny", "input": " ".join(["word"] * 10_000), "truncate": "right"}
        assert member.http.post("/v1/embeddings", json=body).status_code == 200
        large = member.submit(input=["word " * 10_000])
        assert member.http.get(f"/v1/jobs/{large['id']}").status_code == 200
        assert peer.seen
        assert api.stop() == 0  # with 32 threads that still wait for the store


def test_whoever_leaves_a_download_that_hangs_is_not_held_up_by_its_file() -> None:
    read_end, write_end = os.pipe()
    stack = ExitStack()
    source = stack.enter_context(os.fdopen(read_end, "rb"))

    async def leave() -> None:
        content = verified_content(source, stack, sha256="", ref="the store", file="a pipe")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(content), 0.2)

    leaving = threading.Thread(target=lambda: asyncio.run(leave()), daemon=True)
    leaving.start()
    leaving.join(20)
    has_left = not leaving.is_alive()
    assert not source.closed
    os.close(write_end)
    wait_until(lambda: source.closed, within_s=10, what="the file to be closed by who read it")
    leaving.join(20)
    assert has_left


@pytest.mark.unit
def test_threads_run_all_that_they_are_given_and_no_more_of_it_at_a_time_than_they_are() -> None:
    most, running, peak, lock = 3, 0, 0, threading.Lock()
    may_end = threading.Event()

    def work(number: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        assert may_end.wait(30)
        with lock:
            running -= 1
        return number

    threads = DaemonThreads(most, "test")
    futures = [threads.submit(work, number) for number in range(20)]
    wait_until(lambda: peak == most, within_s=10, what="all threads to run")
    assert futures[19].cancel() and not futures[0].cancel()
    may_end.set()
    assert [future.result(timeout=10) for future in futures[:19]] == list(range(19))
    assert peak == most
    assert threads.submit(lambda: 20).result(timeout=10) == 20
    threads.shutdown(cancel_futures=True)
    with pytest.raises(RuntimeError):
        threads.submit(work, 1)


@pytest.mark.unit
def test_work_that_is_cancelled_before_its_turn_holds_nothing() -> None:
    """Or each upload that is refused while the store hangs would leave a piece of its file until the store is back."""

    class Piece(bytearray):
        """What can be watched."""

    may_end = threading.Event()
    threads = DaemonThreads(1, "test")
    running = threads.submit(may_end.wait)
    piece = Piece(b"a")
    seen = weakref.ref(piece)
    first, refused, last = threads.submit(bytes, b"b"), threads.submit(bytes, piece), threads.submit(bytes, b"c")
    del piece
    assert seen() is not None
    assert refused.cancel()
    assert seen() is None
    may_end.set()
    assert [one.result(timeout=10) for one in (running, first, last)] == [True, b"b", b"c"]
    assert threads.submit(bytes, b"d").result(timeout=10) == b"d"
    threads.shutdown()


@pytest.mark.unit
def test_work_that_waits_is_cancelled_when_the_threads_are_closed() -> None:
    may_end = threading.Event()
    threads = DaemonThreads(1, "test")
    running, waiting = threads.submit(may_end.wait), threads.submit(int)
    wait_until(running.running, within_s=10, what="the thread to be busy")
    threads.shutdown(cancel_futures=True)
    assert waiting.cancelled()
    may_end.set()
    assert running.result(timeout=10)


@pytest.mark.unit
def test_an_error_of_the_work_is_its_callers() -> None:
    threads = DaemonThreads(1, "test")

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        threads.submit(fail).result(timeout=10)
    assert threads.submit(lambda: 1).result(timeout=10) == 1
    threads.shutdown()
