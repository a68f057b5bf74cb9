"""Celery's own worker for Ondol's messages: how workers and trainer nodes take what is rung for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from celery.apps.worker import Worker
from celery.signals import worker_shutting_down
from celery.worker.control import Panel, ok

from ondol.broker.celery_app import READ_VERSIONS, RUN_TASK, make_celery_app, queue_name
from ondol.broker.dead_letters import Cause, DeadLetters
from ondol.contract.states import Priority
from workers.hearing import Hearing
from workers.lean_consumer import hearing_with
from workers.stopping import StopRequest

log = structlog.get_logger(__name__)


class _ListeningWorker(Worker):  # type: ignore[misc]  # celery is untyped
    """Hears what this process was asked before Celery's handlers were there."""

    asked_before: StopRequest

    def install_platform_tweaks(self, worker: Any) -> None:
        """Install the signal handlers: from here on nothing is missed, so that what came before is sent again."""
        super().install_platform_tweaks(worker)
        self.asked_before.pass_on()


def _leave_to_sql(_panel: Any, **_: Any) -> Any:
    """What every node of Celery hears when a producer revokes its task: the intake cancels the job, in SQL."""
    return ok("messages are not revoked here; cancel the job")


def queues_of(worker: str, lanes: Iterable[Priority]) -> tuple[str, ...]:
    """The queues of a node that takes messages of these lanes."""
    return tuple(queue_name(worker, lane) for lane in lanes)


def consume(
    redis_url: str,
    *,
    name: str,
    queues: tuple[str, ...],
    concurrency: int,
    handle: Callable[[str], None],
    begin_to_stop: Callable[..., None],
    hearing: Hearing,
    letters: DeadLetters,
    stop: StopRequest,
) -> int:
    """Take messages from `queues` until SIGTERM or SIGINT, on this (the main) thread; the exit code.

    `handle` gets each message's id, on one of `concurrency` threads. `begin_to_stop` runs inside the signal handler.
    `hearing` is told of each message, and may ask for a new connection. What is no message goes to `letters`.
    A `stop` that was asked for before Celery listens counts too.
    """
    app = make_celery_app(redis_url, queues=queues)
    for queue in app.conf.task_queues:
        queue.no_ack = True

    @app.task(name=RUN_TASK, ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # celery is untyped
    def run_message(task: Any, /, *args: Any, v: Any = None, message: Any = "", **rest: Any) -> None:
        # The rest, as the jobs, is for people who look at the queue: the claim finds them by the message.
        hearing.heard()
        if type(v) is int and v in READ_VERSIONS and isinstance(message, str):
            handle(message)
        else:  # left unclaimed: the reconciler rings again, and a worker of that version may take it
            log.warning("message.unknown_version", version=v if type(v) is int else type(v).__name__)
            found = json.dumps({"args": args, "v": v, "message": message, **rest}).encode()
            queue = str((task.request.delivery_info or {}).get("routing_key"))
            letters.put_aside(queue, found, Cause.UNKNOWN_VERSION)

    for name_of_command in ("revoke", "terminate"):
        Panel.register(name=name_of_command, type="control", visible=False)(_leave_to_sql)
    worker_shutting_down.connect(begin_to_stop, weak=False)
    worker = _ListeningWorker(
        app=app,
        hostname=name,
        pool="threads",
        concurrency=concurrency,
        queues=list(queues),
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        optimization="fair",
        consumer_cls=hearing_with(hearing, letters),
    )
    worker.asked_before = stop
    worker.start()
    return int(worker.exitcode or 0)
