"""Whether a process of this host turns: `python -m ondol.control.healthcheck worker`, or api, trainer and so on.

For containers and monitors: exit code 0 and one line on stdout, or 1 and the reason on stderr. Run it with the same
environment and host name as the process. It says of the

- api, that it can admit work (`/readyz`); of Flower, that it answers;
- worker and trainer, that the lease of their session runs in SQL: it is renewed by the process itself, and only while
  its vital threads live;
- reconciler and intake, that their main loop has touched its heartbeat file within seconds.

Light by intent, as it runs every few seconds: only the two that ask SQL import SQLAlchemy, none of them torch.
"""

from __future__ import annotations

import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

from ondol.contract.errors import DatabaseUnavailable
from ondol.control.heartbeat import STALE_S, Heartbeat
from ondol.settings import (
    EXIT_WRONG_USE,
    ApiSettings,
    CommonSettings,
    FlowerSettings,
    TrainerSettings,
    WorkerSettings,
    load_settings,
)

_ANSWER_LIMIT_S = 5.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Unhealthy(Exception):
    """The process does not turn; the text says what was looked at."""


def check_api() -> str:
    """The api can admit work now."""
    settings = load_settings(ApiSettings)
    return _ask(settings.host, settings.port, "/readyz")


def check_flower() -> str:
    """Flower answers."""
    settings = load_settings(FlowerSettings)
    return _ask(settings.flower_host, settings.flower_port, "/healthcheck")


def check_worker() -> str:
    """The lease of this host's worker for the configured device runs."""
    settings = load_settings(WorkerSettings)
    return _session(settings, f"{settings.device.replace(':', '')}@{socket.gethostname()}")


def check_trainer() -> str:
    """The lease of this host's trainer node for the configured device runs."""
    settings = load_settings(TrainerSettings)
    return _session(settings, f"train-{settings.device.replace(':', '')}@{socket.gethostname()}")


def check_reconciler() -> str:
    """The reconciler of this data folder ticks, whether it leads or waits."""
    return _beats("reconciler")


def check_intake() -> str:
    """The intake of this data folder turns."""
    return _beats("intake")


CHECKS: dict[str, Callable[[], str]] = {
    "api": check_api,
    "flower": check_flower,
    "worker": check_worker,
    "trainer": check_trainer,
    "reconciler": check_reconciler,
    "intake": check_intake,
}


def main(arguments: list[str]) -> int:
    """Check one process; the exit code."""
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        sys.stderr.write(f"name one of {', '.join(CHECKS)}\n")
        return EXIT_WRONG_USE
    try:
        sys.stdout.write(CHECKS[arguments[0]]() + "\n")
    except Unhealthy as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


def _ask(host: str, port: int, path: str) -> str:
    host = _ANY_ADDRESS.get(host, host)
    url = f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_LIMIT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            raise Unhealthy(f"{url} answers {exc.code}: {exc.read(500).decode(errors='replace')}") from exc
    except (OSError, ValueError) as exc:
        raise Unhealthy(f"{url} does not answer: {exc}") from exc
    return f"{url} answers"


def _session(settings: CommonSettings, worker: str) -> str:
    from ondol.control.administration import open_workers

    try:
        workers = open_workers(settings.resolved_database_url())
    except DatabaseUnavailable as exc:
        raise Unhealthy(exc.message) from exc
    if worker not in workers:
        raise Unhealthy(f"no lease runs for {worker}; there are {', '.join(sorted(workers)) or 'none at all'}")
    return f"the lease of {worker} runs"


def _beats(name: str) -> str:
    settings = load_settings(CommonSettings)
    age_s = Heartbeat(settings.run_dir, name).age_s()
    if age_s is None:
        raise Unhealthy(f"the {name} of {settings.data_dir} has not begun to turn")
    if age_s > STALE_S:
        raise Unhealthy(f"the {name} of {settings.data_dir} last turned {age_s:.0f} s ago")
    return f"the {name} turned {age_s:.1f} s ago"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
