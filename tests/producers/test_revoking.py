"""`revoke`, `countdown`, and messages that come twice: one job a task, or none."""

from __future__ import annotations

import signal
import time

import pytest
from celery import group, states
from celery.exceptions import TaskRevokedError

from ondol.contract.states import JobState
from tests.http.peer_worker import PeerWorker
from tests.producers.producer import LIMIT_S, MODEL, Producer
from tests.producers.shop import Shop
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

LATER = 4e9


def test_a_message_that_comes_again_makes_no_second_job(shop: Shop, worker: PeerWorker, producer: Producer) -> None:
    sent = producer.embed(task_id="order-17")
    worker.run_one_message()
    result = sent.get(timeout=LIMIT_S)
    for _ in range(3):
        producer.embed(task_id="order-17")
    last = producer.embed("another text")  # queues are first in, first out: by now the others have been seen
    shop.job_of(last.id)
    wait_until(lambda: _num_unacknowledged(producer) == 0, within_s=LIMIT_S, what="every message to be acknowledged")
    assert shop.count("order-17") == 1
    assert sent.state == states.SUCCESS
    assert sent.get(timeout=LIMIT_S) == result
    last.revoke()
    producer.wait_for_state(last, states.REVOKED)


def test_a_recorded_job_is_cancelled(shop: Shop, producer: Producer) -> None:
    sent = [producer.send(model=MODEL, input=["x"], not_before=LATER) for _ in range(3)]
    jobs = [shop.job_of(each.id) for each in sent]
    sent[0].revoke()
    producer.app.control.revoke([each.id for each in sent[1:]])
    for each, job in zip(sent, jobs, strict=True):
        assert isinstance(producer.error_of(each), TaskRevokedError)
        assert each.state == states.REVOKED
        assert shop.job_of(each.id).state is JobState.CANCELLED
        assert shop.job_of(each.id).id == job.id


def test_a_task_that_is_not_recorded_yet_never_runs(shop: Shop, producer: Producer) -> None:
    intake = shop.cluster.processes["intake"]
    intake.send_signal(signal.SIGSTOP)
    try:
        sent = [producer.send(model=MODEL, input=["x"], not_before=LATER) for _ in range(5)]
        for each in sent:
            each.revoke()
    finally:
        intake.send_signal(signal.SIGCONT)
    for each in sent:
        producer.wait_for_state(each, states.REVOKED)
        # Whichever came first: no job, or one that is cancelled as soon as it is recorded.
        wait_until(lambda each=each: _has_no_job(shop, each.id), within_s=LIMIT_S, what="no job to be left")  # type: ignore[misc]  # bound at definition


def test_an_ended_job_is_not_revoked(shop: Shop, worker: PeerWorker, producer: Producer) -> None:
    sent = producer.embed()
    worker.run_one_message()
    result = sent.get(timeout=LIMIT_S)
    sent.revoke()
    other = producer.send(model=MODEL, input=["x"], not_before=LATER)
    shop.job_of(other.id)
    other.revoke()
    producer.wait_for_state(other, states.REVOKED)  # commands are in order: the first has been obeyed by now
    assert producer.app.AsyncResult(sent.id).get(timeout=LIMIT_S) == result
    assert shop.job_of(sent.id).state is JobState.SUCCEEDED


def test_a_countdown_is_a_time_in_sql(shop: Shop, producer: Producer) -> None:
    begun = time.time()
    sent = producer.embed(countdown=3600)
    job = shop.job_of(sent.id)
    assert begun + 3599 < job.run_after < time.time() + 3601
    later = producer.send(model=MODEL, input=["x"], not_before=LATER, sending={"countdown": 3600})
    assert shop.job_of(later.id).run_after == LATER
    for each in (sent, later):
        each.revoke()
        producer.wait_for_state(each, states.REVOKED)


def test_a_group_is_joined_by_its_results(worker: PeerWorker, producer: Producer) -> None:
    embed = producer.app.signature("ondol.embedding", kwargs={"model": MODEL, "input": ["one", "two"]})
    sent = group([embed, embed], app=producer.app).apply_async()
    num_done = 0
    while num_done < 2:
        num_done += len(worker.run_one_message())
    assert [len(result["data"]) for result in sent.get(timeout=LIMIT_S)] == [2, 2]


def test_an_expired_message_is_not_recorded(shop: Shop, producer: Producer) -> None:
    sent = producer.embed(expires=-1)
    producer.wait_for_state(sent, states.REVOKED)
    assert shop.find(sent.id) is None


def _num_unacknowledged(producer: Producer) -> int:
    client = producer.app.backend.client
    return int(client.hlen("ondol.intake.unacked") + client.llen("celery") + client.llen("ondol.jobs"))


def _has_no_job(shop: Shop, task_id: str) -> bool:
    job = shop.find(task_id)
    return job is None or job.state is JobState.CANCELLED
