"""A message that nobody understands is put aside, byte for byte, for people to look at, put back or drop."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ondol.broker.celery_app import PRODUCER_QUEUES, RUN_TASK
from ondol.broker.connection import connect
from ondol.broker.dead_letters import HEAD_BYTES, MAX_LETTERS, MAX_WHOLE_BYTES, STREAM, Cause, DeadLetters
from ondol.broker.publisher import Publisher
from ondol.broker.wake import WakeBus
from ondol.cli.findings import Verdict
from ondol.cli.server_checks import judge_letters
from ondol.contract.errors import IllegalTransition, NotFound
from ondol.control import letters as administration
from ondol.control.reconciler import Reconciler, ReconcilerLimits
from ondol.control.ringer import Ringer
from ondol.metrics.roles import ReconcilerMetrics
from tests.cluster import REPOSITORY, Cluster
from tests.job_fixtures import LIMITS, open_database
from tests.reliability.conftest import MakeHouse
from tests.reliability.house import LIMIT_S
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

QUEUE = "ondol.jobs"
FORM: list[Any] = [[], {"model": "tiny", "input": "the word kingfisher"}, {}]


@pytest.fixture
def letters(empty_redis: RedisServer) -> Iterator[DeadLetters]:
    opened = DeadLetters(empty_redis.url, by="tests")
    yield opened
    opened.close()


def test_a_letter_is_what_was_put_aside(letters: DeadLetters, empty_redis: RedisServer) -> None:
    body = bytes(range(256))
    letters.put_aside(QUEUE, body, Cause.UNREADABLE, error=ValueError("kingfisher"))
    [found] = letters.newest()
    assert (found.queue, found.cause, found.error, found.by) == (QUEUE, Cause.UNREADABLE, "ValueError", "tests")
    assert (found.body, found.size_bytes, found.is_whole, found.may_be_requeued) == (body, 256, True, True)
    assert letters.find(found.id) == found and letters.num_letters() == 1
    with closing(connect(empty_redis.url)) as client:
        assert 0 < client.ttl(STREAM) <= 90 * 86_400


def test_letters_are_bounded_in_number_and_size(letters: DeadLetters) -> None:
    letters.put_aside(QUEUE, b"x" * (MAX_WHOLE_BYTES + 1), Cause.INVALID_TASK)
    [large] = letters.newest()
    assert (len(large.body), large.size_bytes) == (HEAD_BYTES, MAX_WHOLE_BYTES + 1)
    assert not large.is_whole and not large.may_be_requeued
    for number in range(MAX_LETTERS + 5):
        letters.put_aside(QUEUE, str(number).encode(), Cause.UNREADABLE)
    assert letters.num_letters() == MAX_LETTERS
    assert letters.newest(1)[0].body == str(MAX_LETTERS + 4).encode() and letters.find(large.id) is None


def test_a_letter_goes_back_into_its_queue_behind_the_others(letters: DeadLetters, empty_redis: RedisServer) -> None:
    with closing(connect(empty_redis.url)) as client:
        client.lpush(QUEUE, b"another")
        letters.put_aside(QUEUE, b"mine", Cause.UNKNOWN_TASK)
        [found] = letters.newest()
        assert [each.id for each in administration.requeue_letters(empty_redis.url, [found.id])] == [found.id]
        assert client.lrange(QUEUE, 0, -1) == [b"mine", b"another"], "taken from the right"
    assert letters.num_letters() == 0 and not letters.requeue(found)
    with pytest.raises(NotFound, match="dead-letters ls"):
        administration.requeue_letters(empty_redis.url, [found.id])


def test_what_is_of_no_use_is_not_put_back(letters: DeadLetters, empty_redis: RedisServer) -> None:
    letters.put_aside("ondol:calls:cpu0@test:normal", b"junk", Cause.NO_CALL)
    letters.put_aside(QUEUE, b"good", Cause.UNREADABLE)
    ids = [each.id for each in letters.newest()]
    with pytest.raises(IllegalTransition, match="drop it"):
        administration.requeue_letters(empty_redis.url, ids)
    assert letters.num_letters() == 2, "all or none"
    with pytest.raises(NotFound):
        administration.drop_letters(empty_redis.url, [ids[0], "no id"])
    assert administration.drop_letters(empty_redis.url, ids[:1]) == 1
    assert administration.drop_letters(empty_redis.url, None) == 1


def test_of_bells_that_are_rung_again_one_a_minute_is_kept_and_all_are_counted(empty_redis: RedisServer) -> None:
    counted: Counter[str] = Counter()
    with closing(DeadLetters(empty_redis.url, count=lambda cause: counted.update([cause]))) as letters:
        for _ in range(3):
            letters.put_aside("ondol.cpu0@test.normal", b"{}", Cause.UNKNOWN_VERSION)
        assert letters.num_letters() == 1 and counted == Counter({"unknown_version": 3})


def test_a_redis_that_is_away_loses_a_letter_and_nothing_else() -> None:
    counted: list[str] = []
    with closing(DeadLetters("redis://127.0.0.1:1", count=counted.append)) as letters:
        letters.put_aside(QUEUE, b"mine", Cause.UNREADABLE)
    assert counted == ["unreadable"]


def test_the_acting_reconciler_deletes_what_is_over_its_time_and_counts_the_rest(
    sqlite_url: str, empty_redis: RedisServer, letters: DeadLetters
) -> None:
    letters.put_aside(QUEUE, b"mine", Cause.UNREADABLE)
    assert _left_after_a_tick(sqlite_url, empty_redis.url, age_s=None) == 1
    assert _left_after_a_tick(sqlite_url, empty_redis.url, age_s=3600.0) == 1
    assert letters.num_letters() == 1
    assert _left_after_a_tick(sqlite_url, empty_redis.url, age_s=-1.0) == 0, "older than a moment to come"
    assert letters.num_letters() == 0


def test_the_doctor_tells_of_letters(letters: DeadLetters) -> None:
    assert judge_letters(letters.newest()).verdict is Verdict.OK
    letters.put_aside(QUEUE, b"mine", Cause.UNREADABLE)
    letters.put_aside(QUEUE, b"mine", Cause.UNKNOWN_TASK)
    finding = judge_letters(letters.newest())
    assert finding.verdict is Verdict.NOTE and "2 dead letters" in finding.found and QUEUE in finding.found
    assert "ondol dead-letters ls" in finding.remedy


def test_the_command_line_shows_puts_back_and_drops_and_holds_no_text_back_but_on_request(
    letters: DeadLetters, empty_redis: RedisServer
) -> None:
    for body in (b"kingfisher one", b"kingfisher two"):
        letters.put_aside(QUEUE, body, Cause.UNREADABLE)
    listed = _run("ls", "--json", redis_url=empty_redis.url)
    assert b"kingfisher" not in listed + _run("ls", redis_url=empty_redis.url)
    second, first = (each["id"] for each in json.loads(listed)["data"])
    assert b"kingfisher" not in _run("show", first, redis_url=empty_redis.url)
    assert _run("show", first, "--body", redis_url=empty_redis.url) == b"kingfisher one"
    _run("requeue", first, redis_url=empty_redis.url)
    assert b"1 dropped" in _run("drop", second, redis_url=empty_redis.url)
    with closing(connect(empty_redis.url)) as client:
        assert client.lrange(QUEUE, 0, -1) == [b"kingfisher one"]


@pytest.mark.chaos
def test_39_a_worker_puts_poison_aside_and_goes_on(make_house: MakeHouse, sqlite_url: str) -> None:
    with make_house(sqlite_url) as house, closing(DeadLetters(house.redis.url)) as letters:
        house.start_api()
        house.start_reconciler()
        house.start_worker(0, faults=[])
        wait_until(house.session_of, within_s=LIMIT_S, what="a session")
        queue = house.queue_of()
        bell = {"message": "msg_x", "jobs": []}
        poison = {
            b"no message at all": Cause.UNREADABLE,
            b"[1, 2]": Cause.UNREADABLE,
            b"[" * 100_000: Cause.UNREADABLE,
            _message("somebody.elses", queue): Cause.UNKNOWN_TASK,
            _message(None, queue): Cause.NO_TASK,
        }
        with house.redis.client() as client:
            client.lpush(queue, *poison, _message(RUN_TASK, queue, body=[[], {"v": 99, **bell}, {}]))
            client.rpush(f"ondol:calls:{queue.removeprefix('ondol.').removesuffix('.normal')}:normal", b"junk")
        wait_until(lambda: letters.num_letters() == len(poison) + 2, within_s=LIMIT_S, what="the letters")
        found = {letter.body: letter.cause for letter in letters.newest()}
        assert {body: found.get(body) for body in poison} == poison, "byte for byte"
        assert Counter(found.values())[Cause.UNKNOWN_VERSION] == 1 and found[b"junk"] == Cause.NO_CALL
        job_id = house.submit("the worker goes on")
        house.ended(job_id)
        assert house.attempts_of(job_id) == [(1, "succeeded")]


@pytest.mark.chaos
def test_39_an_intake_puts_poison_aside_and_goes_on(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, letters: DeadLetters
) -> None:
    body = base64.b64encode(b"\xff no JSON").decode()
    poison = {
        b"no message at all": Cause.UNREADABLE,
        _message("ondol.embedding", QUEUE, body=7): Cause.INVALID_TASK,
        _message("ondol.embedding", QUEUE, body=[[], [], []]): Cause.INVALID_TASK,
        _message("ondol.embedding", QUEUE, changes={"body": body}): Cause.INVALID_TASK,
        _message("ondol.embedding", QUEUE, changes={"content-type": "application/x-python-serialize"}): (
            Cause.INVALID_TASK
        ),
        _message("ondol.everything", QUEUE): Cause.UNKNOWN_TASK,
        _message(None, QUEUE): Cause.NO_TASK,
    }
    settings = {"ONDOL_LOG_FORMAT": "json"}
    cluster = Cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=settings)
    with closing(cluster), closing(connect(empty_redis.url)) as client:
        cluster.start_intake()
        client.lpush(QUEUE, *poison)
        wait_until(lambda: letters.num_letters() == len(poison), within_s=LIMIT_S, what="the letters")
        assert {letter.body: letter.cause for letter in letters.newest()} == poison, "byte for byte"
        assert {letter.by.split("@")[0] for letter in letters.newest()} == {"intake"}
        assert "kingfisher" not in cluster.log_of("intake")
        # The intake goes on: what is put back comes again, and a task that is understood is answered.
        letters.drop([each.id for each in letters.newest() if each.cause != Cause.NO_TASK])
        administration.requeue_letters(empty_redis.url, [letters.newest()[0].id])
        wait_until(lambda: letters.num_letters() == 1, within_s=LIMIT_S, what="the letter to come again")
        good = _message("ondol.embedding", QUEUE)
        client.lpush(QUEUE, good)
        answer = f"celery-task-meta-{json.loads(good)['headers']['id']}"
        told = wait_until(lambda: client.get(answer), within_s=LIMIT_S, what="the answer")
        assert b"FAILURE" in told, "there is no such model"  # type: ignore[operator]  # the library's also fits asyncio
        assert letters.num_letters() == 1, "what is understood and refused is no dead letter"
    assert QUEUE in PRODUCER_QUEUES


def _message(task: str | None, queue: str, *, body: Any = None, changes: dict[str, Any] | None = None) -> bytes:
    """A message in the form that Kombu gives it, without a task where none is named."""
    task_id = str(uuid.uuid4())
    named = {} if task is None else {"task": task, "id": task_id, "lang": "py"}
    content = json.dumps(FORM if body is None else body).encode()
    message = {
        "body": base64.b64encode(content).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": named,
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message | (changes or {})).encode()


def _left_after_a_tick(database_url: str, redis_url: str, *, age_s: float | None) -> float:
    """What a reconciler says is left after its first round, with letters kept for so long."""
    metrics, wake = ReconcilerMetrics(), WakeBus(redis_url)
    with closing(open_database(database_url)) as database, closing(Publisher(redis_url)) as publisher:
        reconciler = Reconciler(
            database=database,
            redis_url=redis_url,
            ringer=Ringer(database, publisher, LIMITS),
            wake=wake,
            limits=ReconcilerLimits(dead_letters_s=age_s),
            metrics=metrics,
        )
        try:
            assert reconciler.tick()
        finally:
            reconciler.close()
            wake.close()
    return float(metrics.registry.get_sample_value("ondol_dead_letters") or 0)


def _run(*arguments: str, redis_url: str) -> bytes:
    """What `ondol dead-letters …` writes to standard output; it must succeed."""
    environment = {**os.environ, "ONDOL_REDIS_URL": redis_url, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "ondol.cli.main", "dead-letters", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout
