"""What producers read under their task ids, written by Celery's own Redis backend code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from celery import Celery, states
from celery.exceptions import BackendStoreError, TaskRevokedError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ondol.contract.errors import BrokerUnavailable

T = TypeVar("T")


class ProducerResults:
    """Results of tasks in Redis; they expire. Thread-safe. Every method raises BrokerUnavailable when Redis is away."""

    def __init__(self, app: Celery) -> None:
        self._backend = app.backend

    def succeed(self, task_id: str, result: Any) -> None:
        """The task has ended with this result (JSON)."""
        _translated(lambda: self._backend.store_result(task_id, result, states.SUCCESS))

    def fail(self, task_id: str, error: Exception) -> None:
        """The task has failed; `AsyncResult.get()` raises an exception of the same built-in type and message."""
        _translated(lambda: self._backend.store_result(task_id, error, states.FAILURE))

    def revoke(self, task_id: str) -> None:
        """The task was cancelled."""
        error = TaskRevokedError("cancelled")
        _translated(lambda: self._backend.store_result(task_id, error, states.REVOKED))

    def revoke_unknown(self, task_id: str) -> None:
        """The task was revoked before it was recorded; nothing if it has another state already."""
        self._offer(task_id, TaskRevokedError("revoked"), states.REVOKED)

    def say_recorded(self, task_id: str, job_id: str) -> None:
        """The task's job is recorded, nothing more; nothing if it has another state already."""
        self._offer(task_id, {"job": job_id}, states.RECEIVED)

    def is_revoked(self, task_id: str) -> bool:
        """Whether the task was revoked."""
        meta: dict[str, Any] = _translated(lambda: self._backend.get_task_meta(task_id, cache=False))
        return bool(meta["status"] == states.REVOKED)

    def _offer(self, task_id: str, result: Any, state: str) -> None:
        backend = self._backend

        def offer() -> None:
            key = backend.get_key_for_task(task_id)
            meta = {"status": state, "result": backend.encode_result(result, state), "traceback": None}
            meta |= {"children": [], "date_done": None, "task_id": task_id}
            value = backend.encode(meta)
            # One command that refuses to overwrite: a job may have ended before its reception is told.
            if backend.client.set(key, value, nx=True, ex=backend.expires):
                backend.client.publish(key, value)

        _translated(offer)


def _translated(work: Callable[[], T]) -> T:
    try:
        return work()
    except (RedisError, OperationalError, BackendStoreError, OSError) as exc:
        raise BrokerUnavailable(f"Redis does not answer: {str(exc)[:200]}") from exc
