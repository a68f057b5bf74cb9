"""The versions that this worker can serve: files in the verified cache, spec, tokenizer, dtype to run them in."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from tokenizers import Tokenizer

from models_store.cache import LocalCache
from models_store.store import ModelStore
from ondol.contract.errors import DeviceLost, InvalidPayload, ModelStoreError, OndolError
from ondol.contract.frames import Header
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, parse_model_spec
from ondol.sql.database import Database
from ondol.sql.records import DtypeRecord, VersionRecord
from workers.device_keeper import DeviceKeeper
from workers.file_pins import FilePin, FilePins
from workers.memory import resident_bytes
from workers.rows import DEFAULT_ENGINE, DeviceModel

log = structlog.get_logger(__name__)

MAX_VERSIONS = 8
"""Remembered beside those that are pinned: a tokenizer may take hundreds of megabytes, and files stay meanwhile."""
_DEVICE_REQUEST_LIMIT_S = 600.0
_DEVICE_UP_LIMIT_S = 20.0
"""A process that has to load CUDA takes ten seconds to start; after this time others run what the worker holds."""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version that is on this host: what tokenising and checking need. The files stay while `pin` is held."""

    record: VersionRecord
    spec: ModelSpec
    path: Path
    tokenizer: Tokenizer
    pin: FilePin


@dataclass(slots=True)
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    version: ServedVersion | None = None
    used_at: float = field(default_factory=time.monotonic)


class ModelLibrary:
    """Thread-safe; each version is fetched, and each dtype resolved, by one thread while the others wait."""

    def __init__(
        self,
        *,
        database: Database,
        store: ModelStore,
        cache: LocalCache,
        keeper: DeviceKeeper,
        default_dtype: str,
        on_loaded: Callable[[Header, DeviceModel], None],
    ) -> None:
        self._database = database
        self._store = store
        self._cache = cache
        self._pins = FilePins(cache)
        self._keeper = keeper
        self._default_dtype = default_dtype
        self._on_loaded = on_loaded
        self.is_pinned: Callable[[str], bool] = lambda _: False
        """Told a manifest digest: whether its versions are kept however many others come."""
        self._lock = threading.Lock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._dtypes: dict[tuple[str, str], str] = {}
        self._loaded: set[str] = set()
        self._load_lock = threading.Lock()
        self._probe_lock = threading.Lock()
        self.device_kind = "unknown"
        self.device_dtypes: tuple[str, ...] = ("float32",)

    def is_prepared(self, version_id: str, dtype: str) -> bool:
        """Whether `version` and `device_model` answer without waiting for files or the device."""
        slot = self._slots.get(version_id)
        if slot is None or slot.version is None:
            return False
        resolved = self._dtypes.get((slot.version.record.manifest_digest, self._wanted(dtype)))
        return resolved is not None and _key(slot.version.record, resolved) in self._loaded

    def version(self, version_id: str) -> ServedVersion:
        """The version with its files here; blocks while they are fetched. ModelNotFound, ModelStoreError."""
        with self._lock:
            slot = self._slots.setdefault(version_id, _Slot())
            slot.used_at = time.monotonic()
            self._slots.move_to_end(version_id)
            self._make_room()
        with slot.lock:
            if slot.version is None:
                self._pins.release_ended()
                slot.version = self._fetch(version_id)
            return slot.version

    def device_model(self, version: ServedVersion, dtype: str) -> DeviceModel:
        """The version in the dtype that the option means here, loaded on the device; blocks while it loads."""
        model = _device_model(version, self._resolve(version, self._wanted(dtype)))
        if model.key in self._loaded:  # without the lock: a model that loads for minutes holds up no other
            return model
        with self._load_lock:
            if model.key not in self._loaded:
                self._load(model, is_pinned=False)
            return model

    def keep_warm(self, version: ServedVersion) -> None:
        """Load the version in its default dtype and pin it: it is never evicted while the device process lives."""
        self._load_anew(version, self._default_dtype, is_pinned=True)

    def warm_up(self, version: ServedVersion, dtype: str) -> None:
        """Load the version and run it once, in a dtype that `wanted_dtypes` gave; blocks while it loads."""
        self._load_anew(version, dtype, is_pinned=False)

    def wanted_dtypes(self, manifest_digest: str, warm: Collection[str]) -> set[str]:
        """The dtypes in which requests have asked for these files, as far as that model is among the `warm` keys."""
        known = list(self._dtypes.items())
        return {
            wanted
            for (digest, wanted), resolved in known
            if digest == manifest_digest and f"{digest}:{resolved}" in warm
        }

    def idle_s(self, manifest_digest: str) -> float:
        """Seconds since a request last asked for a version of these files; infinity if none is remembered."""
        with self._lock:
            slots = [slot for slot in self._slots.values() if _is_of(slot, manifest_digest)]
        return time.monotonic() - max((slot.used_at for slot in slots), default=-float("inf"))

    def unload(self, manifest_digest: str, keys: Collection[str]) -> None:
        """Let models of these files go from the device, pinned or not, and the files once no row names them.

        Whoever asks for the version again has it brought back. DeviceError, DeviceLost.
        """
        with self._load_lock:
            for key in keys:
                self._loaded.discard(key)
                self._ask({"op": "unload", "key": key})
        with self._lock:
            for version_id in [known for known, slot in self._slots.items() if _is_of(slot, manifest_digest)]:
                del self._slots[version_id]
        self._pins.release_ended()

    def probe(self, path: Path, digest: str, ref: str) -> DtypeRecord:
        """What `auto` means for the files at `path` on this device, by the device's own fidelity check."""
        model = DeviceModel(f"{digest}:probe", ref, str(path), "float32")
        header = self._ask({"op": "probe", "model": model.as_header()})
        self._ask({"op": "unload", "key": model.key})
        return DtypeRecord(
            manifest_digest=digest,
            device_kind=str(header["device_kind"]),
            engine=DEFAULT_ENGINE,
            dtype=str(header["dtype"]),
            fidelity=header["fidelity"],
            is_packed=bool(header["is_packed"]),
        )

    def record_engine(self, key: str, switched: Header) -> None:
        """A model went over to another engine: record its fidelity there. Returns at once."""
        found = DtypeRecord(
            manifest_digest=key.partition(":")[0],
            device_kind=self.device_kind,
            engine=str(switched["engine"]),
            dtype=key.partition(":")[2],
            fidelity=switched["fidelity"],
            is_packed=False,
        )
        threading.Thread(target=self._record, args=(found,), name="engine-recorder", daemon=True).start()

    def _record(self, found: DtypeRecord) -> None:
        try:
            self._database.write(lambda uow: uow.models.record_dtype(found))
        except OndolError as exc:  # a note for people; the next device process that goes over writes it again
            log.warning("engine.not_recorded", engine=found.engine, reason=exc.message[:200])

    def _load_anew(self, version: ServedVersion, dtype: str, *, is_pinned: bool) -> None:
        """Ask the device even if it held the model before: it may have evicted it, or be another process by now."""
        model = _device_model(version, self._resolve(version, dtype))
        with self._load_lock:
            self._load(model, is_pinned=is_pinned)

    def _load(self, model: DeviceModel, *, is_pinned: bool) -> None:
        header = self._ask({"op": "load", "model": model.as_header(), "pinned": is_pinned})
        self._on_loaded(header, model)
        self._loaded.add(model.key)

    def _ask(self, request: Header) -> Header:
        """The device's answer. One that is being replaced is waited for: attempts would be used up before it is back.

        DeviceLost when it is not back in time, ends over this very request or never answers it; DeviceError.
        """
        self._keeper.wait_up(_DEVICE_UP_LIMIT_S)
        try:
            return self._keeper.request(request).result(_DEVICE_REQUEST_LIMIT_S)[0]
        except TimeoutError:
            raise DeviceLost(f"the device process has not answered for {_DEVICE_REQUEST_LIMIT_S:g} s") from None

    def _make_room(self) -> None:
        """Forget what was used longest ago, and is not pinned, as far as there is too much of it."""
        others = [version_id for version_id, slot in self._slots.items() if not self._is_kept(slot)]
        for version_id in others[: max(0, len(others) - MAX_VERSIONS)]:
            self._forget(self._slots.pop(version_id))

    def _is_kept(self, slot: _Slot) -> bool:
        return slot.version is not None and self.is_pinned(slot.version.record.manifest_digest)

    def _forget(self, slot: _Slot) -> None:
        """A version makes room for another: the device is asked again for it. Its files go with its last row."""
        if slot.version is None:
            return
        digest = slot.version.record.manifest_digest
        if not any(_is_of(other, digest) for other in self._slots.values()):
            self._loaded.difference_update([key for key in tuple(self._loaded) if key.startswith(f"{digest}:")])

    def _wanted(self, dtype: str) -> str:
        return self._default_dtype if dtype == "auto" else dtype

    def _resolve(self, version: ServedVersion, dtype: str) -> str:
        digest = version.record.manifest_digest
        known = self._dtypes.get((digest, dtype))
        if known is not None:
            return known
        if dtype != "auto":
            if dtype not in self.device_dtypes:
                offered = ", ".join(self.device_dtypes)
                raise InvalidPayload(f"this device does not run {dtype}; it runs {offered}", param="options.dtype")
            resolved = dtype
        else:
            with self._probe_lock:
                resolved = self._dtypes.get((digest, dtype)) or self._resolve_auto(version)
        self._dtypes[(digest, dtype)] = resolved
        return resolved

    def _resolve_auto(self, version: ServedVersion) -> str:
        kind, digest = self.device_kind, version.record.manifest_digest
        found = self._database.read(lambda uow: uow.models.resolved_dtype(digest, kind))
        if found is None:
            probed = self.probe(version.path, digest, version.record.ref)
            found = self._database.write(lambda uow: uow.models.record_dtype(probed))
        return found.dtype

    def _fetch(self, version_id: str) -> ServedVersion:
        record = self._database.read(lambda uow: uow.models.by_id(version_id))
        path = self._cache.materialise(self._store, record.manifest_digest, record.ref, pin=True)
        pin = self._pins.hold(record.manifest_digest)
        spec = parse_model_spec((path / SPEC_FILE).read_bytes(), ref=record.ref)
        return ServedVersion(record, spec, path, load_tokenizer(path, ref=record.ref), pin)


def load_tokenizer(path: Path, *, ref: str) -> Tokenizer:
    """The tokenizer without truncation and padding of its own; ModelStoreError when it cannot be read."""
    before, started_at = resident_bytes(), time.monotonic()
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as exc:  # the library raises bare Exception
        raise ModelStoreError(f"tokenizer.json of {ref} is not readable: {exc}") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    log.info(
        "tokenizer.loaded",
        ref=ref,
        size_bytes=max(0, resident_bytes() - before),
        load_s=round(time.monotonic() - started_at, 3),
    )
    return tokenizer


def _key(record: VersionRecord, dtype: str) -> str:
    return f"{record.manifest_digest}:{dtype}"


def _is_of(slot: _Slot, manifest_digest: str) -> bool:
    return slot.version is not None and slot.version.record.manifest_digest == manifest_digest


def _device_model(version: ServedVersion, dtype: str) -> DeviceModel:
    return DeviceModel(_key(version.record, dtype), version.record.ref, str(version.path), dtype, version.pin)
