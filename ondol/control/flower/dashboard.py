"""Flower as one application: configured, closed by one gate, and told to forget texts."""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from celery import Celery
from flower.app import Flower
from flower.options import default_options
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback

from ondol.control.flower.listening import MAX_NODES, Listener, NodeInspector
from ondol.control.flower.pages import (
    Refused,
    ResultsAreElsewhere,
    TaskPage,
    ToJob,
    application_settings,
    short_in_lists,
)

COLUMNS = ("name", "uuid", "state", "kwargs", "worker", "received", "started", "runtime")
FORGET_NODES_AFTER_S = 60
INSPECT_EVERY_S = 30
_OPEN_PATH = "/healthcheck"


@dataclass(frozen=True, slots=True)
class DashboardOptions:
    """Where it listens, who may look, and what it remembers. `api_url` gives the api's address, None while unknown."""

    host: str
    port: int
    user: str
    password: str
    max_tasks: int
    state_file: Path
    api_url: Callable[[], str | None]


class Dashboard(Flower):  # type: ignore[misc]  # flower is untyped
    """Flower, read-only. Nothing but `/healthcheck` is answered without the password.

    One a process: the library's options are global.
    """

    def __init__(self, celery_app: Celery, loop: IOLoop, given: DashboardOptions) -> None:
        self._credentials = f"{given.user}:{given.password}"
        _set_options(given, self._credentials)
        listener = Listener(celery_app, loop, state_file=given.state_file, max_tasks=given.max_tasks)
        super().__init__(
            options=default_options, capp=celery_app, events=listener, io_loop=loop, **application_settings()
        )
        self.inspector = NodeInspector(loop, celery_app, self.options.inspect_timeout / 1000)
        self.add_handlers(
            r".*",
            [
                (r"/task/(.+)", TaskPage),
                (r"/job/(job_[0-9a-z]+)", ToJob, {"api_url": given.api_url}),
                (r"/api/task/result/(.+)", ResultsAreElsewhere),
            ],
        )

    def start(self) -> None:
        """Serve until `stop`. Nodes are asked for their queues again and again: most come after the dashboard."""
        asking = PeriodicCallback(self.update_workers, INSPECT_EVERY_S * 1000)
        asking.start()
        try:
            super().start()
        finally:
            asking.stop()

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Who answers; without the password nobody but `Refused`: pages, API, metrics and static files alike."""
        if request.path == _OPEN_PATH or self._is_known(request.headers.get("Authorization", "")):
            return super().find_handler(request, **kwargs)
        return self.get_handler_delegate(request, Refused)

    def _is_known(self, header: str) -> bool:
        scheme, _, encoded = header.partition(" ")
        if scheme != "Basic":
            return False
        try:
            given = b64decode(encoded, validate=True)
        except ValueError:
            return False
        return hmac.compare_digest(given, self._credentials.encode())


def listen(dashboard: Dashboard) -> int:
    """Bind; the port. OSError if it is taken."""
    return cast(int, dashboard.start_http_server())


def _set_options(given: DashboardOptions, credentials: str) -> None:
    options = default_options
    options.address = given.host
    options.port = given.port
    options.basic_auth = [credentials]
    options.read_only = True
    options.max_tasks = given.max_tasks
    options.max_workers = MAX_NODES
    options.purge_offline_workers = FORGET_NODES_AFTER_S
    options.tasks_columns = ",".join(COLUMNS)
    options.format_task = short_in_lists
