"""Publishing messages: after the commit that chose their jobs, never before."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ondol.broker.celery_app import MESSAGE_VERSION, RUN_TASK, make_celery_app, make_queue, queue_name
from ondol.broker.shown_jobs import show_jobs
from ondol.contract.states import Priority

log = structlog.get_logger(__name__)


class Publisher:
    """Sends `ondol.run` messages. Blocks for at most the socket's timeout; one thread at a time."""

    def __init__(self, redis_url: str) -> None:
        self._app = make_celery_app(redis_url)

    def publish(
        self, message_id: str, *, worker: str, priority: Priority, kind: str, jobs: Sequence[tuple[str, int]]
    ) -> bool:
        """Ring one message; False when Redis refuses or does not answer: the reconciler rings again."""
        try:
            self._app.send_task(
                RUN_TASK,
                kwargs={"v": MESSAGE_VERSION, "message": message_id, "jobs": [list(pair) for pair in jobs]},
                queue=make_queue(queue_name(worker, priority)),
                task_id=message_id,
                shadow=f"ondol.{kind}",
                argsrepr="()",
                kwargsrepr=show_jobs([job_id for job_id, _ in jobs]),
                ignore_result=True,
            )
        except (OperationalError, RedisError, OSError) as exc:
            log.warning("ring.not_published", message_id=message_id, worker=worker, reason=str(exc)[:200])
            return False
        return True

    def close(self) -> None:
        """Let go of the connections."""
        self._app.close()
