"""The dashboard's process: `python -m ondol.control.flower_main`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import structlog
from tornado.ioloop import IOLoop

from ondol.broker.celery_app import make_celery_app
from ondol.contract.errors import OndolError
from ondol.control.embedded_redis import write_secret
from ondol.control.flower.address import dashboard_password, url_file, where_the_password_is
from ondol.control.flower.dashboard import Dashboard, DashboardOptions, listen
from ondol.control.host import PortTaken, http_address
from ondol.logs import configure_logging
from ondol.settings import EXIT_WRONG_USE, FlowerSettings, load_settings

log = structlog.get_logger(__name__)


def run_flower(settings: FlowerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then save what is remembered; it waits out an outage of Redis. Main thread."""
    celery_app = make_celery_app(settings.resolved_redis_url())
    asyncio.set_event_loop(asyncio.new_event_loop())
    loop = IOLoop.current()
    dashboard = Dashboard(celery_app, loop, _options(settings))
    address_file = url_file(settings.run_dir)
    try:
        port = listen(dashboard)
    except OSError as exc:
        where = f"port {settings.flower_port} on {settings.flower_host}"
        raise PortTaken(f"{where} cannot be bound ({exc.strerror}); choose another by ONDOL_FLOWER_PORT") from exc
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_event_loop().add_signal_handler(number, dashboard.stop)
    write_secret(address_file, http_address(settings.flower_host, port) + "\n")
    log.info("flower.listening", address=[settings.flower_host, port], login=where_the_password_is(settings))
    try:
        dashboard.start()
    finally:
        address_file.unlink(missing_ok=True)
    log.info("flower.stopped")


def main() -> int:
    """Run until SIGTERM or SIGINT; exit code 0, or 2 with one line: no Redis is named, or the port is taken."""
    settings = load_settings(FlowerSettings)
    configure_logging(settings.log_level, settings.log_format, process="flower")
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # a search that a person typed is nobody's business
    os.umask(0o077)
    try:
        run_flower(settings)
    except OndolError as exc:
        sys.stderr.write(exc.message + "\n")
        return EXIT_WRONG_USE
    return 0


def _options(settings: FlowerSettings) -> DashboardOptions:
    return DashboardOptions(
        host=settings.flower_host,
        port=settings.flower_port,
        user=settings.flower_user,
        password=dashboard_password(settings),
        max_tasks=settings.flower_max_tasks,
        state_file=settings.data_dir / "flower" / "state",
        api_url=lambda: _api_url(settings),
    )


def _api_url(settings: FlowerSettings) -> str | None:
    """Looked for each time: the api may come, go and change its port."""
    if settings.public_url is not None:
        return settings.public_url.rstrip("/")
    try:
        return (settings.run_dir / "api.url").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(main())
