"""What `ondol up` starts on this host: one Redis, the api, one worker a device, the intake, the reconciler, Flower."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pydantic import SecretStr

from ondol.contract.devices import DeviceSpec
from ondol.control.embedded_redis import prepare_embedded_redis
from ondol.control.supervise import Program
from ondol.control.up_flower import PlannedFlower
from ondol.control.up_metrics import with_metrics_ports
from ondol.settings import PREFIX, UpSettings, WorkerSettings

_REDIS_STOP_S = 2
_SUPERVISOR_SLACK_S = 1
_OWN_FIELDS = frozenset(
    {"api_key", "ready_limit_s", "stop_limit_s", "import_default_model", "train", "producers", "flower"}
)


def plan_programs(
    settings: UpSettings, worker: WorkerSettings, devices: Sequence[DeviceSpec], flower: PlannedFlower | None
) -> list[Program]:
    """The programs of this host, one worker for each of `devices`. Writes Redis' configuration."""
    stop_wait_s = _stop_wait_s(settings)
    grace = {f"{PREFIX}GRACE_S": f"{min(worker.grace_s, stop_wait_s - 1):g}"}
    programs = [] if settings.redis_url else [_redis(settings)]
    programs.append(Program("api", _module("api.main"), stop_wait_s))
    for device in devices:
        environment = _worker_environment(device) | grace
        programs.append(Program(f"worker-{device.slug}", _module("workers.main"), stop_wait_s, environment))
        if settings.train:
            environment = _worker_environment(device) | {f"{PREFIX}TRAIN_GRACE_S": f"{stop_wait_s - 1:g}"}
            programs.append(
                Program(f"trainer-{device.slug}", _module("workers.training.main"), stop_wait_s, environment)
            )
    if settings.producers:
        programs.append(Program("intake", _module("api.intake.main"), stop_wait_s))
    programs.append(Program("reconciler", _module("ondol.control.reconciler_main"), stop_wait_s))
    if flower is not None:
        programs.append(Program("flower", _module("ondol.control.flower_main"), stop_wait_s, flower.environment))
    return with_metrics_ports(programs, settings, devices)


def child_environment(settings: UpSettings) -> dict[str, str]:
    """The environment of everything that is started: this process's, with what was set on the command line on top."""
    environment = dict(os.environ)
    environment[f"{PREFIX}DATA_DIR"] = str(settings.data_dir)
    environment["PYTHONUNBUFFERED"] = "1"
    for name in settings.model_fields_set - _OWN_FIELDS:
        value = getattr(settings, name)
        if value is not None:
            environment[PREFIX + name.upper()] = _as_text(value)
    return environment


def _redis(settings: UpSettings) -> Program:
    server = prepare_embedded_redis(settings.data_dir / "redis", settings.run_dir / "redis.url")
    command = server.write_config(settings.run_dir / "redis.conf")
    return Program("redis", command, _REDIS_STOP_S, is_server=True)


def _stop_wait_s(settings: UpSettings) -> int:
    # Redis stops after the others, and all of it must be over within the limit.
    return max(2, int(settings.stop_limit_s) - _REDIS_STOP_S - _SUPERVISOR_SLACK_S)


def _module(name: str) -> Sequence[str]:
    # -P: a folder named `api` where the user happens to stand is not ours.
    return (sys.executable, "-P", "-m", name)


def _worker_environment(device: DeviceSpec) -> dict[str, str]:
    return {f"{PREFIX}DEVICE": device.name, f"{PREFIX}CORES": ",".join(str(core) for core in device.cores)}


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
