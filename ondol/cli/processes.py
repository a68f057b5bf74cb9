"""`ondol up`, and the single processes behind it: api, worker, trainer, intake, reconciler, Flower."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ondol.settings import (
    PREFIX,
    ApiSettings,
    FlowerSettings,
    IntakeSettings,
    ReconcilerSettings,
    TrainerSettings,
    UpSettings,
    WorkerSettings,
    load_settings,
)

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of everything that Ondol keeps here.", show_default="./ondol-data")
]
Host = Annotated[str | None, typer.Option(help="Address to bind.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to bind; 0 takes a free one.", show_default="8400")]
LogAsJson = Annotated[bool, typer.Option("--json", help="Log JSON, one event a line.")]


def up(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    devices: Annotated[str | None, typer.Option(help="auto, cuda:0,cuda:1 or cpu:2x1.", show_default="auto")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="First port of the other processes' /metrics; the api has its own.")
    ] = None,
    as_json: LogAsJson = False,
) -> int:
    """Start Redis, api, a worker and a trainer a device, reconciler, intake and Flower; keep them running until Ctrl-C.

    Example: ondol up --port 8400 --devices cpu:2x1
    """
    from ondol.control.up import run_up

    given = {"data_dir": data_dir, "host": host, "port": port, "devices": devices, "metrics_port": metrics_port}
    given["log_format"] = _log_format(as_json)
    return run_up(load_settings(UpSettings, **given))


def api(host: Host = None, port: Port = None, data_dir: DataDir = None, as_json: LogAsJson = False) -> None:
    """Run one api process, with the settings of the environment.

    Example: ONDOL_REDIS_URL=redis://redis:6379/0 ondol api --host 0.0.0.0
    """
    given = {"host": host, "port": port, "data_dir": data_dir, "log_format": _log_format(as_json)}
    load_settings(ApiSettings, **given)
    _become("api.main", given)


def worker(
    device: Annotated[str | None, typer.Option(help="cpu:0, cuda:1, …", show_default="cpu:0")] = None,
    cores: Annotated[str | None, typer.Option(help="CPU cores, as in 0,1.", show_default="all")] = None,
    data_dir: DataDir = None,
    as_json: LogAsJson = False,
) -> None:
    """Run one worker for one device, with the settings of the environment.

    Example: ondol worker --device cuda:0
    """
    given = {"device": device, "cores": cores, "data_dir": data_dir, "log_format": _log_format(as_json)}
    load_settings(WorkerSettings, **given)
    _become("workers.main", given)


def trainer(
    device: Annotated[str | None, typer.Option(help="cpu:0, cuda:1, …", show_default="cpu:0")] = None,
    cores: Annotated[str | None, typer.Option(help="CPU cores, as in 0,1.", show_default="all")] = None,
    data_dir: DataDir = None,
    as_json: LogAsJson = False,
) -> None:
    """Run one trainer node for one device: it checks the files of fine-tunes and trains, one at a time.

    Example: ondol trainer --device cuda:0
    """
    given = {"device": device, "cores": cores, "data_dir": data_dir, "log_format": _log_format(as_json)}
    load_settings(TrainerSettings, **given)
    _become("workers.training.main", given)


def intake(data_dir: DataDir = None, as_json: LogAsJson = False) -> None:
    """Run one intake: the Celery node that records what Celery producers send, and answers them.

    Example: ONDOL_PRODUCER_PROJECT=shop ondol intake
    """
    given = {"data_dir": data_dir, "log_format": _log_format(as_json)}
    load_settings(IntakeSettings, **given)
    _become("api.intake.main", given)


def reconciler(data_dir: DataDir = None, as_json: LogAsJson = False) -> None:
    """Run one reconciler, with the settings of the environment; of several, one acts at a time.

    Example: ondol reconciler
    """
    given = {"data_dir": data_dir, "log_format": _log_format(as_json)}
    load_settings(ReconcilerSettings, **given)
    _become("ondol.control.reconciler_main", given)


def flower(
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 takes a free one.", show_default="5555")] = None,
    data_dir: DataDir = None,
    as_json: LogAsJson = False,
) -> None:
    """Run Flower, the dashboard of the Celery nodes: read-only, behind a password.

    Example: ONDOL_REDIS_URL=redis://redis:6379/0 ondol flower --host 0.0.0.0
    """
    given = {"flower_host": host, "flower_port": port, "data_dir": data_dir, "log_format": _log_format(as_json)}
    load_settings(FlowerSettings, **given)
    _become("ondol.control.flower_main", given)


def _log_format(as_json: bool) -> str | None:
    return "json" if as_json else None


def _become(module: str, given: Mapping[str, object]) -> None:
    """Replace this process by `python -m module`; options travel as the settings' environment variables."""
    environment = {PREFIX + name.upper(): str(value) for name, value in given.items() if value is not None}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module], os.environ | environment)
