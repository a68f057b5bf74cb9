"""The api's memory is bounded, whatever its clients send, read slowly, or leave behind: measured of a real process."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import psutil
import pytest
import redis

from ondol.sql.records import Completion, NewShard
from tests.http.api_process import ApiProcess, Member
from tests.http.shared_api import api_fixture
from tests.job_fixtures import new_job, open_session, ring_and_claim
from tests.overload.watchers import asks, head_of, held_by, num_streams, watching
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("api-memory")]

MB = 1024 * 1024
UPLOAD_BYTES = 256 * MB
FILE_BYTES = 64 * MB
KILOBYTE = 1_024
NUM_DEAD = 1_000
NUM_SLOW = 10
SHARDS, SHARD_INPUTS, WIDTH = 24, 1_000, 384
"""A result of 37 MB in SQL, 200 MB as JSON."""
_LOOK_EVERY_S = 0.02


api = api_fixture()


@pytest.fixture
def member(api: ApiProcess) -> Iterator[Member]:
    made = api.member()
    made.submit()  # what the first request loads is not what is measured
    yield made
    made.close()


class Growth:
    """How much more memory a process has had than at the beginning of the block, at most."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.begin = self.most = self._process.memory_info().rss

    def __enter__(self) -> Growth:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def num_bytes(self) -> int:
        """Bytes resident."""
        return int(self.most - self.begin)

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_EVERY_S):
            self.most = max(self.most, self._process.memory_info().rss)


def test_an_upload_is_never_held_in_memory(api: ApiProcess, member: Member) -> None:
    line = b'{"text": "one line of a large file"}\n' * 20_000

    def body() -> Iterator[bytes]:
        yield (
            b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        )
        for _ in range(UPLOAD_BYTES // len(line)):
            yield line
        yield b"\r\n--x--\r\n"

    with Growth(api.pid) as growth:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = member.http.post("/v1/files", content=body(), headers=headers, timeout=120)
    assert answer.status_code == 200 and answer.json()["bytes"] > 0.9 * UPLOAD_BYTES, answer.text
    assert growth.num_bytes < 48 * MB, growth.num_bytes / MB


def test_slow_readers_of_a_large_result_make_it_no_larger(api: ApiProcess, member: Member) -> None:
    job_id = _large_result(api, member)
    size_of_all = 0
    with member.http.stream("GET", f"/v1/jobs/{job_id}/result") as whole:
        size_of_all = sum(map(len, whole.iter_raw()))
    assert size_of_all > 100 * MB
    with Growth(api.pid) as growth, ExitStack() as readers:
        for _ in range(NUM_SLOW):
            answer = readers.enter_context(member.http.stream("GET", f"/v1/jobs/{job_id}/result"))
            assert len(next(answer.iter_raw())) > 0  # and nothing more
        _wait_until_steady(lambda: psutil.Process(api.pid).memory_info().rss)
    assert growth.num_bytes < 150 * MB, growth.num_bytes / MB


def test_slow_readers_of_a_large_file_make_it_no_larger(api: ApiProcess, member: Member) -> None:
    content = b'{"text": "one line of a large file"}\n' * (FILE_BYTES // 37)
    sent = member.http.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"}, timeout=60)
    head = head_of("GET", f"/v1/files/{sent.json()['id']}/content", secret=member.secret)
    with Growth(api.pid) as growth, ExitStack() as readers:
        for _ in range(NUM_SLOW):
            reader = readers.enter_context(asks(api.port, head))
            assert len(reader.recv(KILOBYTE)) > 0  # and nothing more
        _wait_until_steady(lambda: psutil.Process(api.pid).memory_info().rss)
        assert len(reader.recv(KILOBYTE)) == KILOBYTE, "it can go on"
    assert growth.num_bytes < 48 * MB, growth.num_bytes / MB


def test_a_thousand_dead_watchers_cost_little_and_leave_nothing(
    api: ApiProcess, member: Member, redis_server: RedisServer
) -> None:
    job_id = member.submit()["id"]
    with redis.Redis.from_url(redis_server.url) as seen, Growth(api.pid) as first:
        before, num_clients = held_by(api.pid), len(seen.client_list())
        with watching(api.port, job_id, NUM_DEAD, secret=member.secret):
            assert num_streams(api.port) == NUM_DEAD
            assert member.http.get(f"/v1/jobs/{job_id}").status_code == 200, "others are still answered"
            assert len(seen.client_list()) <= num_clients + 2, "they share what the api hears from Redis"
        wait_until(lambda: num_streams(api.port) == 0, within_s=30, what="dead watchers to be left")
        wait_until(lambda: _is_as_before(api, before), within_s=30, what="what they held to be given back")
    assert first.num_bytes < 150 * MB, first.num_bytes / MB
    with Growth(api.pid) as second, watching(api.port, job_id, NUM_DEAD // 4, secret=member.secret):
        pass
    assert second.num_bytes < first.num_bytes / 8 + 8 * MB, (first.num_bytes / MB, second.num_bytes / MB)


def _is_as_before(api: ApiProcess, before: dict[str, int]) -> bool:
    """Whether the api holds no more files, connections and threads than it did, but for those of a pool or two."""
    return all(num <= before[name] + 8 for name, num in held_by(api.pid).items())


def _large_result(api: ApiProcess, member: Member) -> str:
    """A sharded job that has succeeded, with vectors for each of its inputs."""
    shards = tuple(NewShard(i, i * SHARD_INPUTS, SHARD_INPUTS, 16_000, payload=b"[]") for i in range(SHARDS))
    job = replace(new_job(member.project_id), num_inputs=SHARDS * SHARD_INPUTS, shards=shards)
    api.database.write(lambda uow: uow.jobs.add_all([job]))
    session_id = open_session(api.database, "memory@test", lease_s=600)
    data = bytes(itertools.islice(itertools.cycle(range(60)), 4 * WIDTH * SHARD_INPUTS))
    summary = {
        "format": "vectors",
        "tokens": [3] * SHARD_INPUTS,
        "truncated": [],
        "errors": {},
        "num_tokens": 3 * SHARD_INPUTS,
        "shape": [SHARD_INPUTS, WIDTH],
    }
    num_done = 0
    while num_done < SHARDS:
        claimed = [one for one in ring_and_claim(api.database, session_id, "memory@test") if one.id.startswith(job.id)]
        sha256 = hashlib.sha256(data).hexdigest()
        done = [
            Completion(one.id, one.attempt, summary, sha256, len(data), tokens=3, timings={}, data=data)
            for one in claimed
        ]
        api.database.write(lambda uow, done=done: uow.attempts.complete(done))  # type: ignore[misc]  # bound at definition
        api.database.write(lambda uow: uow.ringing.recall_of("memory@test"))
        num_done += len(claimed)
    api.database.write(lambda uow: uow.sessions.stop(session_id, reason="test"))
    return job.id


def _wait_until_steady(look: Callable[[], int]) -> None:
    """Return when the memory has grown by less than a megabyte between two looks, a few times in a row."""
    seen = [look()]

    def is_steady() -> bool:
        seen.append(look())
        return len(seen) > 20 and max(seen[-20:]) - min(seen[-20:]) < MB

    wait_until(is_steady, within_s=30, what="the memory to be steady")
