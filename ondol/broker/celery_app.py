"""The Celery application: the same configuration for everybody who publishes or consumes.

Why each value is what it is: `docs/decisions/0002-celery-is-the-bell.md`.
"""

from __future__ import annotations

from celery import Celery
from kombu import Exchange, Queue

from ondol.contract.states import Priority

RUN_TASK = "ondol.run"
MESSAGE_VERSION = 1


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
        "socket_timeout": 15,
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
