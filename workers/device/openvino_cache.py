"""Models converted for OpenVINO, kept on the local disk: found by the digest of what they were made of, and verified.

`root/<digest>-<version>-<device kind>/` holds `model.xml`, `model.bin` and `report.json`; it appears whole. Imports
neither torch nor OpenVINO.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

from workers.device.engine import Fidelity

log = structlog.get_logger(__name__)

MODEL_FILE = "model.xml"
_WEIGHTS_FILE = "model.bin"
_REPORT_FILE = "report.json"
_STAGING = ".staging-"
_STALE_S = 3_600.0
_MAX_ENTRIES = 32
_CHUNK = 1 << 20
_SOURCES = ("config.json", "ondol.json", "tokenizer.json")
"""What, beside the weights, decides what a model gives and what its fidelity was measured on."""


@dataclass(frozen=True, slots=True)
class DtypeReport:
    """How a dtype did in OpenVINO on this kind of device: its fidelity, and its speed beside torch in CPU seconds."""

    fidelity: Fidelity
    max_batch_tokens: int
    tokens_per_s: float
    torch_tokens_per_s: float
    one_text_s: float
    torch_one_text_s: float


@dataclass(frozen=True, slots=True)
class Conversion:
    """A whole entry of the cache."""

    xml: Path
    dtypes: Mapping[str, DtypeReport]


def openvino_version() -> str | None:
    """The installed version of OpenVINO, without importing it; None if it is not there."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def source_digest(folder: Path) -> str:
    """SHA-256 of the files of a version that its conversion depends on; reads them all."""
    total = hashlib.sha256()
    files = [*sorted(folder.rglob("*.safetensors")), *(folder / name for name in _SOURCES if (folder / name).exists())]
    for file in files:
        total.update(f"{file.relative_to(folder)} {_hash_file(file)}\n".encode())
    return total.hexdigest()


class ConversionCache:
    """Entries under `root` for one kind of device, of at most some number; shared by the processes of a host."""

    def __init__(self, root: Path, *, device_kind: str, openvino: str) -> None:
        self._root = root
        self._suffix = f"{openvino}-{device_kind}"

    def find(self, digest: str) -> Conversion | None:
        """The conversion of these files, every byte compared with its digest; a damaged one is removed."""
        folder = self._folder(digest)
        try:
            report = json.loads((folder / _REPORT_FILE).read_bytes())
            if all(_hash_file(folder / name) == found for name, found in report["files"].items()):
                os.utime(folder)
                return Conversion(folder / MODEL_FILE, _parse_dtypes(report["dtypes"]))
            reason = "the files are not those that were written"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            reason = f"{type(exc).__name__}: {exc}"
        log.warning("openvino.cache_damaged", folder=folder.name, reason=reason[:200])
        shutil.rmtree(folder, ignore_errors=True)
        return None

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder to make an entry in; gone afterwards, and with it what killed processes have left."""
        self._root.mkdir(parents=True, exist_ok=True)
        for left in self._root.glob(f"{_STAGING}*"):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        folder = self._root / f"{_STAGING}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, staged: Path, digest: str, dtypes: Mapping[str, DtypeReport]) -> None:
        """Make the staged model the entry of these files, at once or not at all; one that is there already stays."""
        files = {name: _hash_file(staged / name) for name in (MODEL_FILE, _WEIGHTS_FILE)}
        report = {"files": files, "dtypes": {dtype: asdict(found) for dtype, found in dtypes.items()}}
        (staged / _REPORT_FILE).write_text(json.dumps(report, indent=1), encoding="utf-8")
        for file in staged.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        try:
            staged.rename(self._folder(digest))
        except OSError as exc:
            if self.find(digest) is None:
                raise
            log.info("openvino.converted_elsewhere", reason=str(exc))
        self._bound()

    def _bound(self) -> None:
        """Remove the least recently used entries above the limit; a model in use has its files open or read."""
        entries = sorted(
            (p for p in self._root.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime
        )
        for old in entries[:-_MAX_ENTRIES]:
            shutil.rmtree(old, ignore_errors=True)

    def _folder(self, digest: str) -> Path:
        return self._root / f"{digest[:32]}-{self._suffix}"


def _parse_dtypes(found: Mapping[str, Mapping[str, object]]) -> dict[str, DtypeReport]:
    reports: dict[str, DtypeReport] = {}
    for dtype, fields in found.items():
        numbers = dict(fields)
        fidelity = numbers.pop("fidelity")
        reports[dtype] = DtypeReport(fidelity=Fidelity(**fidelity), **numbers)  # type: ignore[arg-type]  # checked by name
    return reports


def _hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
