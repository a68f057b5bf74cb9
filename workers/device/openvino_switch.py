"""Brings models over to OpenVINO beside the device thread: looked up, converted by a child, compiled, handed over.

One thread does this, one model at a time; the device thread only asks whether a model is ready. The child is started
from that thread, which lives as long as the process, because its parent-death signal is tied to it.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from ondol.contract.errors import DeviceError
from workers.device.engine import Fidelity, ModelHandle
from workers.device.fidelity import MIN_COSINE
from workers.device.openvino_cache import Conversion, ConversionCache, DtypeReport, source_digest
from workers.device.openvino_model import HINTS, OpenVinoModel

log = structlog.get_logger(__name__)

WORTH_S = 20.0
"""Forward seconds after which `auto` thinks a model worth the ten that a conversion takes."""
CHILD_LIMIT_S = 900.0
MIN_FLOAT32_COSINE = 0.99999
MIN_BATCH_GAIN = 1.05
MIN_ONE_TEXT_GAIN = 1.2
NO_BATCH_LOSS = 0.97
_STDERR_SHOWN_CHARS = 500


@dataclass(frozen=True, slots=True)
class Ready:
    """A compiled model that may take over, with what was found of every dtype."""

    model: OpenVinoModel
    fidelity: dict[str, Fidelity]
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class _Wish:
    handle: ModelHandle
    pad_token_id: int
    may_convert: bool


class OpenVinoSwitch:
    """`is_forced`: convert at once and take what is faithful; else only what is worth it and measured to be faster."""

    def __init__(self, root: Path, cache: ConversionCache, *, threads: int, is_forced: bool) -> None:
        self._root = root
        self._cache = cache
        self._threads = threads
        self._is_forced = is_forced
        self._forward_s: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._ready: dict[str, Ready] = {}
        self._lock = threading.Lock()
        self._num_open = 0
        self._wishes: queue.SimpleQueue[_Wish] = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="openvino-switch", daemon=True).start()

    @property
    def is_idle(self) -> bool:
        """Whether no model is being brought over, and none waits to be."""
        with self._lock:
            return self._num_open == 0

    def loaded(self, handle: ModelHandle, *, pad_token_id: int) -> None:
        """A model was loaded: bring it over if it was converted before; when forced, convert it. Returns at once."""
        with self._lock:
            self._wanted.add(handle.key)
            self._forward_s[handle.key] = 0.0
        self._wish(_Wish(handle, pad_token_id, may_convert=self._is_forced))

    def ran(self, handle: ModelHandle, forward_s: float, *, pad_token_id: int) -> None:
        """The torch model has computed this long; at some point it is worth a conversion. Returns at once."""
        before = self._forward_s.get(handle.key)
        if before is None:
            return
        self._forward_s[handle.key] = before + forward_s
        if before < WORTH_S <= before + forward_s and not self._is_forced:
            self._wish(_Wish(handle, pad_token_id, may_convert=True))

    def take(self, key: str) -> Ready | None:
        """The model that may take over now; given out once."""
        if not self._ready:
            return None
        with self._lock:
            return self._ready.pop(key, None)

    def gone(self, key: str) -> None:
        """The model was let go: what is under way for it is dropped."""
        with self._lock:
            self._wanted.discard(key)
            self._ready.pop(key, None)
            self._forward_s.pop(key, None)

    def _wish(self, wish: _Wish) -> None:
        with self._lock:
            self._num_open += 1
        self._wishes.put(wish)

    def _loop(self) -> None:
        while True:
            wish = self._wishes.get()
            try:
                self._bring(wish)
            except (OSError, DeviceError, subprocess.SubprocessError) as exc:
                log.warning("openvino.not_used", ref=wish.handle.ref, reason=str(exc)[-_STDERR_SHOWN_CHARS:])
            except Exception:  # the thread's edge: torch goes on with this model, and the next one is tried
                log.exception("openvino.not_used", ref=wish.handle.ref)
            with self._lock:
                self._num_open -= 1

    def _bring(self, wish: _Wish) -> None:
        handle = wish.handle
        if handle.dtype not in HINTS or not self._is_wanted(handle.key):
            return
        digest = source_digest(handle.path)
        found = self._cache.find(digest)
        if found is None and wish.may_convert:
            self._convert(handle, digest)
            found = self._cache.find(digest)
        if found is None:
            return
        reason = self._why_not(found, handle.dtype)
        if reason is not None:
            log.info("openvino.not_used", ref=handle.ref, dtype=handle.dtype, reason=reason)
            return
        report = found.dtypes[handle.dtype]
        model = OpenVinoModel(found.xml, dtype=handle.dtype, threads=self._threads, pad_token_id=wish.pad_token_id)
        fidelity = {dtype: one.fidelity for dtype, one in found.dtypes.items()}
        with self._lock:
            if handle.key in self._wanted:
                self._ready[handle.key] = Ready(model, fidelity, report.max_batch_tokens)

    def _convert(self, handle: ModelHandle, digest: str) -> None:
        """Run the child to its end; OSError with the end of what it said if it failed."""
        options = ("--folder", str(handle.path), "--ref", handle.ref, "--digest", digest, "--cache", str(self._root))
        command = [sys.executable, "-m", "workers.device.openvino_child", *options, "--threads", str(self._threads)]
        log.info("openvino.converting", ref=handle.ref)
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHILD_LIMIT_S
        )
        if done.returncode != 0:
            tail = done.stderr[-_STDERR_SHOWN_CHARS:].strip()
            raise OSError(f"the conversion ended with status {done.returncode}: {tail}")

    def _why_not(self, found: Conversion, dtype: str) -> str | None:
        report = found.dtypes.get(dtype)
        if report is None:
            return f"OpenVINO was not tried in {dtype}"
        if not is_faithful(report, dtype):
            return f"smallest cosine {report.fidelity.min_cosine:.6f} to torch in float32"
        if not self._is_forced and not is_faster(report):
            return f"{report.tokens_per_s:.0f} tokens/s, torch has {report.torch_tokens_per_s:.0f}"
        return None

    def _is_wanted(self, key: str) -> bool:
        with self._lock:
            return key in self._wanted


def is_faithful(report: DtypeReport, dtype: str) -> bool:
    """Whether OpenVINO may answer in place of torch in this dtype."""
    return report.fidelity.min_cosine >= (MIN_FLOAT32_COSINE if dtype == "float32" else MIN_COSINE)


def is_faster(report: DtypeReport) -> bool:
    """Whether changing over is worth it: batches gain, or single texts do and batches lose nothing."""
    batch_gain = report.tokens_per_s / report.torch_tokens_per_s
    one_text_gain = report.torch_one_text_s / report.one_text_s
    return batch_gain >= MIN_BATCH_GAIN or (batch_gain >= NO_BATCH_LOSS and one_text_gain >= MIN_ONE_TEXT_GAIN)
