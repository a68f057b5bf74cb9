"""The intake's Celery side: which tasks there are, how they are revoked, and what is never written to a log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from celery import Celery
from celery.app.task import Context
from celery.exceptions import Ignore, InvalidTaskError, Reject
from celery.utils.functional import maybe_list
from celery.worker import consumer, state
from celery.worker.control import Panel, ok
from kombu.exceptions import KombuError

from api.intake.answering import where
from api.intake.failures import exception_of
from api.intake.receiving import ProducerMessage, Receiver
from api.intake.request import MAX_TASK_ID_CHARS, ProducerTask, check_request, ignores_result, num_bytes
from api.intake.results import ProducerResults
from ondol.broker.dead_letters import DeadLetters
from ondol.broker.unreadable import PutsAside
from ondol.contract.errors import BrokerUnavailable, HandedBack, OndolError, TaskRevoked
from ondol.contract.kinds import JobKind

T = TypeVar("T")

_LOGGER = consumer.consumer.__name__
_SPILLING = {
    consumer.consumer.UNKNOWN_TASK_ERROR: "a task of the unknown name %s was refused",
    consumer.consumer.INVALID_TASK_ERROR: "a task message that cannot be understood was refused",
    consumer.consumer.MESSAGE_DECODE_ERROR: "a message that cannot be decoded was thrown away",
    consumer.consumer.UNKNOWN_FORMAT: "a message that is no Celery task was thrown away",
}
"""Log lines of Celery's that would repeat the whole message, and what is logged instead."""

_BODY_PARTS = 3

log = structlog.get_logger(__name__)


class Node:
    """Connects Celery's threads with the event loop of a receiver."""

    def __init__(self, receiver: Receiver, results: ProducerResults, loop: asyncio.AbstractEventLoop) -> None:
        self._receiver = receiver
        self._results = results
        self._loop = loop

    def register(self, app: Celery) -> None:
        """Give the application our tasks and no others, and this process our commands; once a process."""
        app.finalize()
        for name in [name for name in app.tasks if name.startswith("celery.")]:
            app.tasks.pop(name)  # celery.map and its like would call our tasks without a message
        for kind in JobKind:
            app.task(_handler(self, kind), name=f"ondol.{kind}", base=ProducerTask, bind=True)
        Panel.register(name="revoke", type="control", variadic="task_id")(self._revoke)
        Panel.register(name="terminate", type="control", args=[("signal", str)], variadic="task_id")(self._terminate)
        logging.getLogger(_LOGGER).addFilter(without_messages)

    def receive(self, message: ProducerMessage) -> str:
        """Record one message's job; its id. Blocks on the calling thread."""
        return self._wait_for(self._receiver.record(message))

    def revoke(self, task_ids: Sequence[str]) -> None:
        """Cancel the jobs of these tasks, and see that those not yet recorded never are; returns at once."""
        # First this, then the look into SQL: a message that is being recorded meanwhile is found by one or the other.
        state.revoked.update(task_ids)
        asyncio.run_coroutine_threadsafe(self._cancel_all(task_ids), self._loop)

    async def _cancel_all(self, task_ids: Sequence[str]) -> None:
        for task_id in task_ids:
            try:
                if await self._receiver.cancel(task_id):
                    state.revoked.discard(task_id)
                else:
                    await asyncio.to_thread(self._results.revoke_unknown, task_id)
            except (BrokerUnavailable, HandedBack) as exc:
                log.warning("intake.not_revoked", task_id=task_id, code=exc.code)
            except Exception as exc:  # noqa: BLE001 - the task's edge: the others are revoked all the same
                log.error("intake.revoke_failed", task_id=task_id, error=type(exc).__name__, at=where(exc))

    def _revoke(self, panel: Any, task_id: Any, terminate: bool = False, signal: str | None = None, **_: Any) -> Any:  # noqa: ARG002 - the signature is the library's
        """Revoke tasks by id, recorded or not."""
        task_ids = [str(each) for each in maybe_list(task_id) or []]
        self.revoke(task_ids)
        return ok(f"tasks {', '.join(task_ids)} flagged as revoked")

    def _terminate(self, panel: Any, signal: str, task_id: Any, **_: Any) -> Any:
        """Revoke tasks by id, recorded or not."""
        return self._revoke(panel, task_id, signal=signal)

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class IntakeConsumer(PutsAside, consumer.Consumer):  # type: ignore[misc]  # celery is untyped
    """A consumer whose producers are told also of messages that cannot be read."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """What takes each message. One that Celery stumbles over is refused: unacknowledged, sixteen stop the node."""
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_refuse(message: Any) -> None:
            try:
                check_form(message)
                handle(message)
            except (ValueError, TypeError, LookupError, AttributeError, KombuError, InvalidTaskError) as exc:
                self.on_invalid_task(None, message, exc)

        return handle_or_refuse

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a message that is no proper task, or not JSON."""
        self._tell(message)
        super().on_invalid_task(body, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Refuse a message whose body cannot be decoded."""
        self._tell(message)
        super().on_decode_error(message, exc)

    def _tell(self, message: Any) -> None:
        task_id = message.headers.get("id") if isinstance(message.headers, dict) else None
        if isinstance(task_id, str):
            error = ValueError("the message cannot be read; send tasks as JSON (code invalid_payload)")
            try:
                ProducerResults(self.app).fail(task_id, error)
            except BrokerUnavailable as exc:  # raised from here, it would end the node
                log.warning("intake.not_told", task_id=task_id[:MAX_TASK_ID_CHARS], reason=exc.message)


def check_form(message: Any) -> None:
    """InvalidTaskError, or what decoding raises, unless the body is `[args, kwargs, …]`.

    Celery itself looks when it runs the task, where a message that it cannot read is acknowledged and gone.
    """
    if not (isinstance(message.headers, dict) and "task" in message.headers):
        return  # Celery's older protocol, or no task: told apart by Celery
    body = message.payload
    is_list = isinstance(body, list | tuple) and len(body) == _BODY_PARTS
    if not (is_list and isinstance(body[0], list | tuple) and isinstance(body[1], dict)):
        raise InvalidTaskError("the body is not [args, kwargs, embed]")


def putting_aside(letters: DeadLetters) -> type[IntakeConsumer]:
    """The consumer's class for the node whose dead letters these are; Celery makes the instance itself."""
    return type("NodeConsumer", (IntakeConsumer,), {"letters": letters})


def without_messages(record: logging.LogRecord) -> bool:
    """A log filter under which Celery names what it refused, and never repeats it."""
    instead = _SPILLING.get(str(record.msg))
    if instead is not None:
        names = record.args[:1] if "%s" in instead and isinstance(record.args, tuple) else ()
        record.msg, record.args, record.exc_info = instead, names, None
    return True


def _handler(node: Node, kind: JobKind) -> Callable[..., dict[str, str]]:
    """What runs for a producer's message of this kind."""

    def handle(task: ProducerTask, /, *_: Any, **fields: Any) -> dict[str, str]:
        return _receive(node, kind, task.request, fields)

    return handle


def _receive(node: Node, kind: JobKind, request: Context, fields: dict[str, Any]) -> dict[str, str]:
    """The message's job is recorded, or the task fails and says why."""
    if request.called_directly:
        raise RuntimeError("a job is submitted by a message, not by a call")
    failure: Exception
    try:
        check_request(request)
        message = ProducerMessage(
            task_id=request.id,
            kind=kind,
            fields=fields,
            not_before=_timestamp(request.eta),
            ignores_result=ignores_result(request),
            num_bytes=num_bytes(request),
        )
        return {"job": node.receive(message)}
    except HandedBack as exc:
        raise Reject(exc.message, requeue=True) from None
    except TaskRevoked as exc:
        raise Ignore(exc.message) from None
    except OndolError as exc:
        log.info("intake.refused", task_id=request.id, kind=kind, code=exc.code, param=exc.param)
        failure = exception_of(exc)
    except Exception as exc:  # noqa: BLE001 - the handler's edge: the producer is told, the log says where
        log.error("intake.failed", task_id=request.id, kind=kind, error=type(exc).__name__, at=where(exc))
        failure = RuntimeError("the job could not be recorded; the intake's log says why (code internal_error)")
    # Raised out here, where no exception stands behind it whose text would be shown with it.
    request.errbacks = None
    request.ignore_result = ignores_result(request)
    raise failure


def _timestamp(eta: Any) -> float | None:
    """Seconds since the epoch of a message's ETA; a time without a zone is UTC, as Celery sends it."""
    if eta is None:
        return None
    time = datetime.fromisoformat(str(eta))
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
