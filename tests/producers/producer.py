"""A Celery producer as other applications have one: broker, backend, and no task of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from tests.waiting import wait_until

LIMIT_S = 60
MODEL = "tiny"
MOOD_MODEL = "moods"
SECRET = "the-badger-sleeps-under-the-floor"


class Producer:
    """Sends tasks by name and reads their results; knows nothing of Ondol."""

    def __init__(self, redis_url: str) -> None:
        self.app = Celery("shop", broker=redis_url, backend=redis_url, set_as_current=False)

    def send(
        self, task_kind: str = "embedding", *, sending: dict[str, Any] | None = None, **fields: Any
    ) -> AsyncResult:
        """A task `ondol.<kind>`, in Celery's default queue unless `sending` says otherwise."""
        return self.app.send_task(f"ondol.{task_kind}", kwargs=fields, **(sending or {}))

    def embed(self, text: str = "the kettle is warm", **sending: Any) -> AsyncResult:
        """An embedding of one text by the tiny model."""
        return self.send(model=MODEL, input=[text], sending=sending)

    def error_of(self, result: AsyncResult) -> Exception:
        """What `get()` raises."""
        error = result.get(timeout=LIMIT_S, propagate=False)
        assert isinstance(error, Exception), error
        return error

    def wait_for_state(self, result: AsyncResult, state: str) -> None:
        """Wait until the task is in the state."""
        wait_until(lambda: result.state == state, within_s=LIMIT_S, what=f"task {result.id} to be {state}")

    def close(self) -> None:
        """Let go of every connection."""
        consumer = self.app.backend.result_consumer
        consumer.stop()
        consumer.subscribed_to.clear()  # results that outlive the test must not connect again to unsubscribe
        self.app.backend.client.close()
        self.app.close()


@contextlib.contextmanager
def running_producer(redis_url: str) -> Iterator[Producer]:
    """A producer that is closed at the end of the block."""
    producer = Producer(redis_url)
    try:
        yield producer
    finally:
        producer.close()
