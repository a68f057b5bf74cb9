"""Whatever lies in the queues and lists of Redis, worker and intake live on, and the next good message is served."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa

from ondol.broker.calls import request_key
from ondol.broker.celery_app import PRODUCER_QUEUES, RUN_TASK, queue_name
from ondol.broker.connection import connect
from ondol.broker.wake import STRIKE_CHANNEL, WAKE_CHANNEL
from ondol.contract.frames import pack_frame
from ondol.contract.states import Priority
from ondol.sql.tables import jobs
from tests.hostile.stand import LIMIT_S, MODEL, Stand
from tests.hostile.strategies import deep_json
from tests.producers.producer import Producer, running_producer
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TEN_MB = 10 * 1024 * 1024
CALL = {
    "v": 1,
    "id": "call_hostile",
    "api": "api_nobody",
    "version_id": "ver_1",
    "model_ref": "tiny:1",
    "kind": "embedding",
    "options": {},
    "inputs": ["a text"],
    "deadline_at": 4e9,
    "priority": "interactive",
}


def envelope(
    body: Any, *, task: Any = RUN_TASK, queue: str, raw: bytes | None = None, changes: dict[str, Any] | None = None
) -> bytes:
    """A message as kombu lays it into a list of Redis; `raw` in place of the JSON of `body`."""
    content = json.dumps(body).encode() if raw is None else raw
    message = {
        "body": base64.b64encode(content).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": str(uuid.uuid4()), "argsrepr": "()", "kwargsrepr": "{}"},
        "properties": {
            "correlation_id": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message | (changes or {})).encode()


def hostile_messages(queue: str, task: str) -> Iterator[bytes]:
    """Messages that understand Celery's form, and are wrong in what they say."""
    no_hooks: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    for kwargs in (
        {},
        {"v": 99, "message": "msg_from_the_future", "jobs": []},
        {"v": 1, "message": "msg_" + "0" * 26, "jobs": [["job_" + "0" * 26, 1]]},
        {"v": 1, "message": 7, "jobs": None},
        {"v": 1, "message": "\x00\ud800", "jobs": "x"},
        {"v": "1", "message": {"a": [1]}, "jobs": [], "more": True},
        {"v": 1, "message": "m" * TEN_MB, "jobs": []},
    ):
        yield envelope([[], kwargs, no_hooks], task=task, queue=queue)
    yield envelope([[1, 2, 3], {}, no_hooks], task=task, queue=queue)
    bodies: tuple[Any, ...] = ([], {}, None, 7, "text", [[], {}], [None, None, None], [[], [], []])
    for body in bodies:
        yield envelope(body, task=task, queue=queue)
    for name in ("no.such.task", "", 7, None, ["ondol.run"], "celery.map", "os.system"):
        yield envelope([[], {}, no_hooks], task=name, queue=queue)
    for raw in (b"not JSON", b"\xff\xfe\x00", b"", deep_json()):
        yield envelope(None, task=task, queue=queue, raw=raw)
    good = [[], {"v": 1, "message": "msg_x", "jobs": []}, no_hooks]
    yield envelope(good, task=task, queue=queue, changes={"content-type": "application/x-python-serialize"})
    yield envelope(good, task=task, queue=queue, changes={"content-encoding": "no-such-encoding"})
    yield envelope(
        good, task=task, queue=queue, changes={"headers": {"task": task, "id": "x" * 10_000, "eta": "yesterday"}}
    )
    yield envelope(good, task=task, queue=queue, changes={"headers": {"task": task, "id": ["x"], "expires": "never"}})
    yield envelope(good, task=task, queue=queue, changes={"headers": {}})
    yield envelope(good, task=task, queue=queue, changes={"headers": ["task", task]})
    yield envelope(good, task=task, queue=queue, changes={"properties": {}})
    yield b"not even an envelope"
    yield b"7"


@pytest.fixture
def producer(stand_redis: RedisServer) -> Iterator[Producer]:
    with running_producer(stand_redis.url) as started:
        yield started


def test_a_worker_outlives_hostile_messages(stand: Stand, stand_redis: RedisServer) -> None:
    before = stand.pids()
    worker = _worker_name(stand)
    with closing(connect(stand_redis.url)) as client:
        for priority in Priority:
            queue = queue_name(worker, priority)
            for message in hostile_messages(queue, RUN_TASK):
                client.lpush(queue, message)
        _wait_until_empty(client, [queue_name(worker, priority) for priority in Priority])
    stand.check_alive(before)


def test_an_intake_outlives_hostile_messages(stand: Stand, stand_redis: RedisServer, producer: Producer) -> None:
    before, num_before = stand.pids(), _num_jobs(stand)
    with closing(connect(stand_redis.url)) as client:
        for queue in PRODUCER_QUEUES:
            for message in hostile_messages(queue, "ondol.embedding"):
                client.lpush(queue, message)
        _wait_until_empty(client, PRODUCER_QUEUES)
    told = producer.send(model=MODEL, input="the kettle is warm").get(timeout=LIMIT_S)
    assert len(told["data"]) == 1
    assert _num_jobs(stand) == num_before + 1, "nothing that was wrong became a job"
    stand.check_alive(before)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": MODEL, "input": "\ud800"},
        {"model": MODEL, "input": ["fine", "\udfff"]},
        {"model": "\ud800", "input": "a"},
        {"model": MODEL, "input": "a", "webhook": "http://\ud800/"},
        {"model": MODEL, "input": "a", "webhook": "http://x/\x00"},
        {"model": MODEL, "input": "a", "input_file": "\x00"},
        {"model": MODEL, "input": "a", "options": {"prompt_name": "\ud800"}},
        {"model": MODEL, "input": "a", "priority": "\x00"},
        {"model": MODEL, "input": "a", "deadline_s": float("nan")},
        {"model": MODEL, "input": "a", "not_before": 10**400},
        {"model": MODEL, "input": [10**400]},
        {"model": MODEL, "input": "a", "metadata": {"a": float("inf")}},
        {"model": MODEL, "input": "a", "no_such_field": 1},
        {"model": MODEL, "input": "a", "kind": "import"},
    ],
)
def test_a_producer_is_told_what_is_wrong(producer: Producer, stand: Stand, fields: dict[str, Any]) -> None:
    num_before = _num_jobs(stand)
    error = producer.error_of(producer.send(**fields))
    assert isinstance(error, ValueError | LookupError), error
    assert "internal_error" not in str(error), error
    assert _num_jobs(stand) == num_before


@pytest.mark.parametrize("metadata", [{"nul": "\x00"}, {"half": "\ud800"}, {"\ud800": 1}])
def test_odd_metadata_come_back_as_they_were_or_are_refused(
    producer: Producer, stand: Stand, metadata: dict[str, Any]
) -> None:
    result = producer.send(model=MODEL, input="a", metadata=metadata)
    answer = result.get(timeout=LIMIT_S, propagate=False)
    if isinstance(answer, Exception):
        assert isinstance(answer, ValueError) and "internal_error" not in str(answer), answer
    for page in ("/v1/jobs", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs?metadata[nul]=x"):
        assert stand.http.get(page).status_code == 200


def test_a_worker_outlives_hostile_calls(stand: Stand, stand_redis: RedisServer) -> None:
    before = stand.pids()
    keys = [request_key(_worker_name(stand), priority) for priority in Priority]
    wrong: dict[str, list[Any]] = {
        "id": [7, None, ["x"], {}],
        "api": [7, None],
        "version_id": ["ver_nobody", 7, ["x"], {}],
        "model_ref": [7, None, "nobody:9"],
        "kind": ["import", "fine-tune", "no-kind", 7, None],
        "options": [None, 7, [], "x", {"no": "option"}, {"max_length": -1}, {"dtype": 7}],
        "inputs": [None, 7, "a text", [], [7], [None], [[-1]], [[10**12]], [["x"]], [{"text": 7}], [{}], ["\ud800"]],
        "deadline_at": [None, "soon", 10**400, float("nan"), -1],
        "priority": ["none", 7, None],
    }
    version = stand.cluster.database.read(lambda uow: uow.models.list_versions(_project(stand)))[-1]
    good = CALL | {"version_id": version.id, "options": {"dtype": "auto"}}
    with closing(connect(stand_redis.url)) as client:
        for frame in (b"", b"\0" * 12, b"\xff" * 40, b"x" * TEN_MB, b"\x01\0\0\0" + b"\0" * 8 + b"7"):
            client.rpush(keys[0], frame)
        for key in keys:
            for field, values in wrong.items():
                client.rpush(key, *(pack_frame(good | {field: value}) for value in values))
                client.rpush(key, pack_frame({name: value for name, value in good.items() if name != field}))
        _wait_until_empty(client, keys)
    stand.check_alive(before)


def test_hints_that_are_none_are_passed_over(stand: Stand, stand_redis: RedisServer) -> None:
    before = stand.pids()
    with closing(connect(stand_redis.url)) as client:
        for channel in (WAKE_CHANNEL, STRIKE_CHANNEL):
            for hint in (b"", b"\xff", b"7", b"null", b'"x"', b"{}", b"[[1], {}, null]", b'["\\ud800"]', deep_json()):
                assert client.publish(channel, hint) > 0
    stand.check_alive(before)


def _worker_name(stand: Stand) -> str:
    sessions = stand.cluster.database.read(lambda uow: uow.sessions.open_sessions())
    return next(session.worker for session in sessions if session.role == "infer")


def _project(stand: Stand) -> str:
    return stand.cluster.database.write(lambda uow: uow.keys.ensure_project())


def _num_jobs(stand: Stand) -> int:
    query = sa.select(sa.func.count()).select_from(jobs)
    return stand.cluster.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def _wait_until_empty(client: Any, keys: Any) -> None:
    wait_until(
        lambda: not any(client.llen(key) for key in keys), within_s=LIMIT_S, what=f"somebody to take {', '.join(keys)}"
    )
