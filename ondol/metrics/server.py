"""`/metrics` on a port of its own, for the processes that serve no HTTP otherwise."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from ondol.contract.errors import NotReady


class MetricsAddress(Protocol):
    """The part of a process's settings that says where its `/metrics` are."""

    @property
    def metrics_host(self) -> str:
        """Address to bind."""

    @property
    def metrics_port(self) -> int | None:
        """Port to bind; None: nothing is served."""


class MetricsServer:
    """A running server, or none; `close` it, or use it in a `with` statement."""

    def __init__(self, running: tuple[WSGIServer, threading.Thread] | None) -> None:
        self._running = running

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Serve no more and let go of the port."""
        running, self._running = self._running, None
        if running is not None:
            server, thread = running
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)


def serve_metrics(settings: MetricsAddress, registry: CollectorRegistry) -> MetricsServer:
    """Serve the registry where the settings say; NotReady, with what to do, if the port cannot be had."""
    port = settings.metrics_port
    if port is None:
        return MetricsServer(None)
    try:
        return MetricsServer(start_http_server(port, addr=settings.metrics_host, registry=registry))
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise NotReady(
            f"/metrics cannot be served on {settings.metrics_host} port {port}: {reason}; "
            "set ONDOL_METRICS_PORT to a free port, or leave it out"
        ) from exc
