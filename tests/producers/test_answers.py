"""What a producer gets: results, exceptions of built-in types, and what its task's state says meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from celery import chain, chord, states
from celery.exceptions import ChordError, NotRegistered

from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.sql.notices import NoticeRecord
from ondol.sql.tables import jobs, results
from ondol.sql.unit_of_work import UnitOfWork
from tests.http.peer_worker import PeerWorker, vector_of
from tests.producers.conftest import API_URL
from tests.producers.producer import LIMIT_S, MODEL, MOOD_MODEL, Producer
from tests.producers.shop import Shop
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

TUNING = {"train_file": "file_" + "0" * 26, "output_name": "mine"}


@pytest.mark.parametrize("queue", ["ondol.jobs", None])
def test_a_result_comes_by_either_queue(shop: Shop, worker: PeerWorker, producer: Producer, queue: str | None) -> None:
    sent = producer.embed("the kettle is warm", **({"queue": queue} if queue else {}))
    job = shop.job_of(sent.id)
    producer.wait_for_state(sent, states.RECEIVED)
    assert sent.info == {"job": job.id}
    worker.run_one_message()
    result = sent.get(timeout=LIMIT_S)
    assert result["object"] == "list"
    assert result["model"] == f"{MODEL}:1"
    vector = np.array(result["data"][0]["output"], dtype=np.float32)
    assert vector.tolist() == vector_of("the kettle is warm").tolist()


def test_labels_come_as_the_api_gives_them(worker: PeerWorker, producer: Producer) -> None:
    sent = producer.send("text-classification", model=MOOD_MODEL, input=["so warm"], priority="interactive")
    worker.run_one_message()
    scores = sent.get(timeout=LIMIT_S)["data"][0]["output"]
    assert {score["label"] for score in scores} == {"sad", "calm", "glad"}


def test_a_large_result_is_a_reference(shop: Shop, worker: PeerWorker, producer: Producer) -> None:
    sent = producer.send(model=MODEL, input=[f"text {i}" for i in range(200)])
    worker.run_one_message()
    job = shop.job_of(sent.id)
    url = f"{API_URL}/v1/jobs/{job.id}/result"
    assert sent.get(timeout=LIMIT_S) == {"object": "job.result_reference", "job": job.id, "result_url": url}


def test_who_wants_no_result_gets_none(
    shop: Shop, worker: PeerWorker, producer: Producer, shop_redis: RedisServer
) -> None:
    ignored = producer.embed("nobody asks", ignore_result=True)
    refused = producer.send(model="no-such-model", input=["x"], sending={"ignore_result": True})
    worker.run_one_message()
    assert shop.job_of(ignored.id).state is JobState.SUCCEEDED
    told = producer.embed("somebody asks")
    worker.run_one_message()
    told.get(timeout=LIMIT_S)  # answers are in order: what there was to be told of the others has been told
    assert ignored.state == states.PENDING
    assert refused.state == states.PENDING
    assert shop.database.read(lambda uow: uow.notices.of(shop.job_of(ignored.id).id)) == []


def test_bad_fields_raise_built_in_exceptions(producer: Producer) -> None:
    cases = [
        (producer.send(model=MODEL, input=["x"], modle="y"), ValueError, "modle"),
        (producer.send(model=MODEL, input=[]), ValueError, "param input"),
        (producer.send(model=MODEL, input=["x"], kind="embedding"), ValueError, "param kind"),
        (producer.send(model=MODEL, input=["x"], sending={"args": ["x"]}), ValueError, "kwargs"),
        (producer.send("fill-mask", model=MODEL, input=["x"]), ValueError, "unknown_job_kind"),
        (producer.send("text-classification", model=MODEL, input=["x"]), ValueError, "model_has_no_head"),
        (producer.send(model="no-such-model", input=["x"]), LookupError, "model_not_found"),
        (producer.send("fine-tune", model=MODEL, options=TUNING), LookupError, "options.train_file"),
        (producer.send("import", input={"path": "/tmp"}, options={}), ValueError, "options.name"),
        (producer.send("import", input={"path": "/tmp"}, options={"name": "mine"}), RuntimeError, "administrator"),
        (producer.send("embedding", model=MODEL, input=["x"], sending={"task_id": "i" * 200}), ValueError, "task_id"),
    ]
    for sent, kind, word in cases:
        error = producer.error_of(sent)
        assert type(error) is kind, error
        assert word in str(error)


def test_an_unknown_task_is_not_registered(producer: Producer) -> None:
    for name in ("shop.restock", "ondol.run", "celery.map"):
        error = producer.app.send_task(name, kwargs={"it": []}).get(timeout=LIMIT_S, propagate=False)
        assert isinstance(error, NotRegistered)


def test_a_missed_deadline_is_a_timeout(shop: Shop, producer: Producer) -> None:
    sent = producer.send(model=MODEL, input=["x"], not_before=4e9, deadline_s=600)
    job = shop.job_of(sent.id)
    assert job.state is JobState.QUEUED
    passed = sa.update(jobs).where(jobs.c.id == job.id).values(deadline_at=1.0)
    shop.database.write(lambda uow: uow.conn.execute(passed))
    assert shop.database.write(lambda uow: uow.jobs.expire_deadlines()) == [job.id]
    assert type(producer.error_of(sent)) is TimeoutError
    too_late = producer.send(model=MODEL, input=["x"], deadline_s=1e-9)
    assert type(producer.error_of(too_late)) is TimeoutError and shop.find(too_late.id) is None


def test_what_would_run_at_once_is_refused(shop: Shop, producer: Producer) -> None:
    fields = {"model": MODEL, "input": ["x"]}
    embed, after = producer.app.signature("ondol.embedding", kwargs=fields), producer.app.signature("shop.after")
    linked = embed.apply_async(link=after)
    assert "link would run when the job is recorded" in str(producer.error_of(linked))
    chained = chain(embed, after, app=producer.app).apply_async()
    assert "chain" in str(producer.error_of(chained.parent))
    assert type(producer.error_of(chained)) is ValueError  # the rest of the chain fails with it, nobody waits for ever
    counted = chord([embed, embed], after, app=producer.app).apply_async()
    assert isinstance(producer.error_of(counted), ChordError)
    assert shop.find(linked.id) is None


def test_every_kind_has_a_task(producer: Producer) -> None:
    [tasks] = producer.app.control.inspect(timeout=LIMIT_S, limit=1).registered().values()
    assert set(tasks) == {f"ondol.{kind}" for kind in JobKind}


def test_an_answer_that_cannot_be_made_holds_up_no_other(shop: Shop, worker: PeerWorker, producer: Producer) -> None:
    told = []
    for text in ("one", "two"):
        told.append(producer.embed(text))
        worker.run_one_message()
        told[-1].get(timeout=LIMIT_S)
    broken, good = (shop.job_of(each.id).id for each in told)
    for job_id in (
        broken,
        good,
    ):  # an answer is written down after it was given; telling again before that is the same try
        wait_until(
            lambda job_id=job_id: _notice(shop, job_id).status == "accepted",  # type: ignore[misc]  # bound here
            within_s=LIMIT_S,
            what="the answer to be written down",
        )

    def break_and_tell_again(uow: UnitOfWork) -> None:
        uow.conn.execute(sa.update(results).where(results.c.job_id == broken).values(summary=["torn"]))
        for job_id in (broken, good):
            uow.notices.send_again(uow.notices.of(job_id)[0].id, job_id)

    shop.database.write(break_and_tell_again)
    wait_until(lambda: _notice(shop, good).num_tries == 2, within_s=LIMIT_S, what="the good one to be claimed again")
    wait_until(lambda: _notice(shop, good).status == "accepted", within_s=LIMIT_S / 4, what="the good one to be told")
    assert (_notice(shop, broken).status, _notice(shop, broken).last_answer) == ("waiting", "internal_error")
    shop.database.write(lambda uow: uow.jobs.delete(broken, shop.project_id))


def _notice(shop: Shop, job_id: str) -> NoticeRecord:
    return shop.database.read(lambda uow: uow.notices.of(job_id))[0]
