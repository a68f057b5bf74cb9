"""No text of a producer's appears in events, in what `inspect` answers, or in the intake's log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import states

from tests.producers.producer import LIMIT_S, MODEL, SECRET, Producer
from tests.producers.shop import Shop
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


def test_texts_are_nowhere_to_be_seen(shop: Shop, producer: Producer) -> None:
    with _events(producer) as events:
        good = producer.send(model=MODEL, input=[SECRET], not_before=4e9)
        producer.send(model=MODEL, input=[SECRET], sending={"shadow": SECRET})
        bad = producer.send(model=MODEL, input=[SECRET, 7])
        unknown = producer.app.send_task("shop.restock", args=[SECRET], kwargs={"note": SECRET})
        pickled = producer.app.send_task("ondol.embedding", kwargs={"input": [SECRET]}, serializer="pickle")
        producer.app.send_task(good.id, kwargs={}, queue="ondol.jobs")
        errors = [producer.error_of(each) for each in (bad, unknown, pickled)]
        _send_garbage(producer)
        shop.job_of(good.id)
        good.revoke()
        producer.wait_for_state(good, states.REVOKED)
        for task, kind in ((good.id, "task-succeeded"), (bad.id, "task-failed"), (unknown.id, "task-failed")):
            wait_until(
                lambda task=task, kind=kind: any(e.get("uuid") == task and e["type"] == kind for e in events),  # type: ignore[misc]  # bound at definition
                within_s=LIMIT_S,
                what=f"the event {kind}",
            )
        received = [e for e in events if e["type"] == "task-received" and e["uuid"] == good.id]
        assert [(e["name"], e["kwargs"]) for e in received] == [("ondol.embedding", "(not shown)")]
        assert SECRET not in json.dumps(list(events), default=str)
    assert all(SECRET not in str(error) for error in errors)
    assert type(errors[2]) is ValueError
    assert SECRET not in shop.cluster.log_of("intake")


def test_inspect_shows_no_texts_of_a_message_in_work(shop: Shop, producer: Producer) -> None:
    with shop.database._write_engine.begin():  # SQLite lets nobody else write: the message stays in work
        sent = producer.send(model=MODEL, input=[SECRET], not_before=4e9)
        [active] = wait_until(lambda: _active(producer, sent.id), within_s=LIMIT_S, what="the task to be active")
        assert active["kwargs"] == "(not shown)"
        assert SECRET not in json.dumps(active)
    shop.job_of(sent.id)
    sent.revoke()
    producer.wait_for_state(sent, states.REVOKED)


def _active(producer: Producer, task_id: str) -> list[dict[str, Any]]:
    answers = producer.app.control.inspect(timeout=LIMIT_S, limit=1).active() or {}
    return [task for tasks in answers.values() for task in tasks if task["id"] == task_id]


def _send_garbage(producer: Producer) -> None:
    with producer.app.connection_for_write() as connection:
        connection.SimpleQueue("celery").put({"note": SECRET})
        body = f'{{"broken {SECRET}'.encode()
        with connection.Producer() as sender:
            headers = {"task": "ondol.embedding", "id": "garbage"}
            sender.publish(
                body, routing_key="celery", headers=headers, content_type="application/json", content_encoding="utf-8"
            )


@contextmanager
def _events(producer: Producer) -> Iterator[list[dict[str, Any]]]:
    """Every event that Celery nodes send during the block, as Flower would read them."""
    seen: list[dict[str, Any]] = []
    is_open = threading.Event()
    with producer.app.connection_for_read() as connection:
        receiver = producer.app.events.Receiver(connection, handlers={"*": seen.append})
        receiver.on_consume_ready = lambda *_, **__: is_open.set()
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        try:
            assert is_open.wait(LIMIT_S)
            # Redis takes the subscription only after that: from the first heartbeat on nothing is missed.
            wait_until(lambda: bool(seen), within_s=LIMIT_S, what="a first event")
            yield seen
        finally:
            receiver.should_stop = True
            thread.join()
