"""The Celery application: the same configuration for everybody who publishes or consumes.

Why each value is what it is: `docs/decisions/0002-celery-is-the-bell.md`.
"""

from __future__ import annotations

from celery import Celery
from kombu import Exchange, Queue

from ondol.broker.connection import CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S
from ondol.contract.states import Priority

RUN_TASK = "ondol.run"
MESSAGE_VERSION = 1
"""The version of a message that is published."""
READ_VERSIONS = frozenset({MESSAGE_VERSION})
"""Those that are understood. A new one is read a release before it is written (decision 18)."""
PRODUCER_QUEUES = ("ondol.jobs", "celery")
"""Where Celery producers send jobs: our own queue, and the one that Celery takes when none is named."""
_UNACKNOWLEDGED_LIMIT_S = 60
"""After so long a message that a dead intake had taken is given to another. A live one may get it twice: harmless."""


def queue_name(worker: str, priority: Priority) -> str:
    """The queue of one device (its worker's name) and class."""
    return f"ondol.{worker}.{priority}"


def make_queue(name: str) -> Queue:
    """A direct queue; Celery publishes to it through the anonymous exchange, so no binding can be lost."""
    return Queue(name, Exchange("ondol", type="direct"), routing_key=name)


def make_celery_app(redis_url: str, *, queues: tuple[str, ...] = ()) -> Celery:
    """The application, connected to nothing yet; `queues` are those that a worker consumes."""
    app = Celery("ondol", broker=redis_url, set_as_current=False)
    transport = {
        # Short, because events are sent from the loop that also listens: on a half-open link it hears nothing so long.
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": False,
    }
    app.conf.update(
        task_queues=[make_queue(name) for name in queues],
        task_default_queue=queues[0] if queues else "ondol.none",
        task_create_missing_queues=not queues,
        task_acks_late=False,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        broker_transport_options=transport,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_max": 0.5},
        worker_detect_quorum_queues=False,
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,
        enable_utc=True,
    )
    return app


def make_intake_app(redis_url: str, *, result_s: float) -> Celery:
    """The application of the intake: late acknowledgement, and results kept for `result_s` seconds.

    Why it differs from the other: `docs/decisions/0014-the-intake.md`.
    """
    app = make_celery_app(redis_url, queues=PRODUCER_QUEUES)
    transport = {
        **app.conf.broker_transport_options,
        # Keys of its own: among nodes that share them the shortest limit holds for all.
        "unacked_key": "ondol.intake.unacked",
        "unacked_index_key": "ondol.intake.unacked_index",
        "unacked_mutex_key": "ondol.intake.unacked_mutex",
        "visibility_timeout": _UNACKNOWLEDGED_LIMIT_S,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    }
    app.conf.update(
        broker_transport_options=transport,
        result_backend=redis_url,
        result_expires=max(1, int(result_s)),
        result_backend_thread_safe=True,
        result_backend_transport_options={"retry_policy": {"max_retries": 2, "interval_max": 0.5}},
        redis_socket_timeout=SOCKET_TIMEOUT_S,
        redis_socket_connect_timeout=CONNECT_TIMEOUT_S,
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=10,
        task_acks_late=True,
        task_ignore_result=False,
    )
    return app
