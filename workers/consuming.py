"""Celery's own worker for Ondol's messages: how workers and trainer nodes take what is rung for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.signals import worker_shutting_down
from celery.worker.control import Panel, ok

from ondol.broker.celery_app import READ_VERSIONS, RUN_TASK, make_celery_app
from workers.hearing import Hearing
from workers.lean_consumer import hearing_with

log = structlog.get_logger(__name__)


def _leave_to_sql(_panel: Any, **_: Any) -> Any:
    """What every node of Celery hears when a producer revokes its task: the intake cancels the job, in SQL."""
    return ok("messages are not revoked here; cancel the job")


def consume(
    redis_url: str,
    *,
    name: str,
    queues: tuple[str, ...],
    concurrency: int,
    handle: Callable[[str], None],
    begin_to_stop: Callable[..., None],
    hearing: Hearing,
) -> int:
    """Take messages from `queues` until SIGTERM or SIGINT, on this (the main) thread; the exit code.

    `handle` gets each message's id, on one of `concurrency` threads. `begin_to_stop` runs inside the signal handler.
    `hearing` is told of each message, and may ask for a new connection.
    """
    app = make_celery_app(redis_url, queues=queues)
    for queue in app.conf.task_queues:
        queue.no_ack = True

    @app.task(name=RUN_TASK, ignore_result=True)  # type: ignore[untyped-decorator]  # celery is untyped
    def run_message(v: int, message: str = "", **_: Any) -> None:
        # The rest, as the jobs, is for people who look at the queue: the claim finds them by the message.
        hearing.heard()
        if v in READ_VERSIONS:
            handle(message)
        else:  # left unclaimed: the reconciler rings again, and a worker of that version may take it
            log.warning("message.unknown_version", version=v, message_id=message)

    for name_of_command in ("revoke", "terminate"):
        Panel.register(name=name_of_command, type="control", visible=False)(_leave_to_sql)
    worker_shutting_down.connect(begin_to_stop, weak=False)
    worker = app.Worker(
        hostname=name,
        pool="threads",
        concurrency=concurrency,
        queues=list(queues),
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        optimization="fair",
        consumer_cls=hearing_with(hearing),
    )
    worker.start()
    return int(worker.exitcode or 0)
