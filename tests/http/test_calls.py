"""`/v1/embeddings`: OpenAI's own client gets what it expects, errors name the item, nothing is stored unless asked."""

from __future__ import annotations

import base64
import threading
import time
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import sqlalchemy as sa

from ondol.broker.calls import request_key
from ondol.contract.states import Priority
from ondol.sql.tables import usage
from tests.http.api_process import MODEL, Member
from tests.http.conftest import StartApi
from tests.http.peer_worker import PeerWorker, vector_of
from tests.http.test_bad_input import assert_refused
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

TIME_HEADERS = ("x-queue-time", "x-tokenization-time", "x-inference-time", "x-total-time")


def call(member: Member, **fields: Any) -> httpx.Response:
    return member.http.post("/v1/embeddings", json={"model": MODEL, "input": "a text", **fields})


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("a text", ["a text"]),
        (["a", "b c"], ["a", "b c"]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_openais_client_gets_its_vectors(member: Member, worker: PeerWorker, value: Any, items: list[Any]) -> None:
    with openai.OpenAI(base_url=f"{member.api.url}/v1", api_key=member.secret) as client:
        by_base64 = client.embeddings.create(model=MODEL, input=value)
        by_float = client.embeddings.create(model=MODEL, input=value, encoding_format="float")
    for answer in (by_base64, by_float):
        assert (answer.object, answer.model) == ("list", "tiny:1")
        assert [item.index for item in answer.data] == list(range(len(items)))
        for item, sent in zip(answer.data, items, strict=True):
            assert np.array_equal(np.asarray(item.embedding, np.float32), vector_of(sent))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_the_answer_has_openais_shape_and_our_times(member: Member, worker: PeerWorker) -> None:
    answer = call(member, encoding_format="base64", user="somebody", something_new={"is": "ignored"})
    body = answer.json()
    assert set(body) == {"object", "data", "model", "usage"}
    assert set(body["data"][0]) == {"object", "index", "embedding"}
    assert np.array_equal(np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4"), vector_of("a text"))
    assert all(float(answer.headers[name]) >= 0 for name in TIME_HEADERS)
    assert (answer.headers["x-tokenization-time"], answer.headers["x-inference-time"]) == ("2.000", "3.000")


def test_options_reach_the_worker(member: Member, worker: PeerWorker) -> None:
    assert len(call(member, dimensions=4).json()["data"][0]["embedding"]) == 4
    call(member, pooling="max", prompt_name="query", truncate="left", max_length=9, priority="bulk", dtype="float32")
    request = worker.seen[-1]
    assert request.priority is Priority.BULK and request.model_ref == "tiny:1"
    wanted = {"pooling": "max", "prompt_name": "query", "truncate": "left", "max_length": 9, "dtype": "float32"}
    assert {name: request.options[name] for name in wanted} == wanted
    assert worker.seen[0].options["truncate"] == "error"


def test_an_item_error_fails_the_whole_call_by_its_name(member: Member, worker: PeerWorker) -> None:
    answer = call(member, input=["short", "one " * 30])
    assert_refused(answer, 400, "input[1]")
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert call(member, input=["short", "one " * 30], truncate="right").status_code == 200


def test_a_stored_call_is_one_message_and_no_more(member: Member, worker: PeerWorker) -> None:
    many = ["seven or eight words make one text here"] * 2_000
    answer = call(member, input=many, store=True)
    assert_refused(answer, 413, "input")
    assert "submit a job" in answer.json()["error"]["message"] and member.count_rows() == 0
    assert call(member, input=many, truncate="right").status_code == 200, "without store it is answered"


def test_without_a_ready_worker_a_call_is_503_with_a_time_to_come_back(start_api: StartApi, sqlite_url: str) -> None:
    member = start_api(sqlite_url).member()
    answer = call(member)
    assert_refused(answer, 503, None)
    assert answer.json()["error"]["code"] == "not_ready" and int(answer.headers["retry-after"]) >= 1
    member.close()


def test_a_call_that_is_not_answered_in_time_is_504(
    start_api: StartApi, sqlite_url: str, redis_server: RedisServer
) -> None:
    api = start_api(sqlite_url, call_timeout_s="0.5")
    member = api.member()
    peer = PeerWorker(api.database, redis_server.url, "silent@one", answers_calls=False)
    answer = call(member)
    assert_refused(answer, 504, None)
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    peer.close()
    member.close()


def test_a_client_that_hangs_up_is_struck_out(start_api: StartApi, sqlite_url: str, redis_server: RedisServer) -> None:
    api = start_api(sqlite_url)
    member = api.member()
    peer = PeerWorker(api.database, redis_server.url, "silent@two", answers_calls=False)
    with redis_server.client() as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("ondol:strike")
        with pytest.raises(httpx.ReadTimeout):
            member.http.post("/v1/embeddings", json={"model": MODEL, "input": "x"}, timeout=0.5)
        message = wait_until(lambda: pubsub.get_message(timeout=0.1), within_s=10, what="the call to be struck out")
    assert "call_" in message["data"]
    peer.close()
    member.close()


def test_a_warm_worker_is_chosen(member: Member, worker: PeerWorker, redis_server: RedisServer) -> None:
    database = member.api.database
    warm = PeerWorker(database, redis_server.url, "zz-warm@test")
    database.write(lambda uow: uow.sessions.renew(warm.session_id, lease_s=60, is_ready=True, warm=["tiny:1"]))

    def is_seen() -> bool:
        assert call(member).status_code == 200
        return bool(warm.seen)

    wait_until(is_seen, within_s=5, what="a call to reach the warm worker")
    before = len(worker.seen)
    for _ in range(3):
        call(member)
    assert (len(worker.seen), len(warm.seen)) == (before, 4)
    warm.close()


def test_a_call_goes_to_another_worker_when_its_own_is_gone(
    start_api: StartApi, sqlite_url: str, redis_server: RedisServer
) -> None:
    api = start_api(sqlite_url)
    member = api.member()
    silent = PeerWorker(api.database, redis_server.url, "a-silent@test", answers_calls=False)
    answers: list[httpx.Response] = []
    calling = threading.Thread(target=lambda: answers.append(call(member)))
    calling.start()
    with redis_server.client() as client:
        sent = request_key(silent.name, Priority.INTERACTIVE)
        wait_until(lambda: client.llen(sent) == 1, within_s=10, what="the call to reach the silent worker")
    peer = PeerWorker(api.database, redis_server.url, "b-answers@test")
    silent.close()
    calling.join()
    assert answers[0].status_code == 200 and len(peer.seen) == 1
    peer.close()
    member.close()


def test_calls_are_not_stored_but_their_usage_is(member: Member, worker: PeerWorker) -> None:
    for _ in range(3):
        call(member, input=["a b", "c"])
    assert member.count_rows() == 0
    query = sa.select(usage.c.num_calls, usage.c.num_inputs, usage.c.num_tokens).where(
        usage.c.project_id == member.project_id
    )
    found = wait_until(
        lambda: [
            tuple(row) for row in member.api.database.read(lambda uow: uow.conn.execute(query).all()) if row[0] == 3
        ],
        within_s=5,
        what="three calls to be counted",
    )
    assert found == [(3, 6, 21)]


def test_a_stored_call_is_a_job(member: Member, worker: PeerWorker) -> None:
    answers: list[httpx.Response] = []
    calling = threading.Thread(target=lambda: answers.append(call(member, input=["a", "b"], store=True)))
    calling.start()
    [job] = worker.run_one_message()
    calling.join()
    [answer] = answers
    assert answer.headers["x-ondol-job-id"] == job.id and job.priority is Priority.INTERACTIVE
    vectors = [np.float32(item["embedding"]) for item in answer.json()["data"]]
    assert np.array_equal(np.stack(vectors), np.stack([vector_of("a"), vector_of("b")]))
    assert member.http.get(f"/v1/jobs/{job.id}").json()["status"] == "succeeded"


def test_many_calls_at_once_are_each_answered_with_their_own(member: Member, worker: PeerWorker) -> None:
    wrong: list[str] = []

    def ask(number: int) -> None:
        for i in range(20):
            text = f"{number} {i}"
            found = call(member, input=text).json()["data"][0]["embedding"]
            if not np.array_equal(np.float32(found), vector_of(text)):
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and time.monotonic() - begun < 30
