"""The real engine: a warm pool of models on one device, run by torch. All calls come from one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog
import torch

from ondol.contract.errors import DeviceError, DeviceLost, OndolError, OutOfDeviceMemory
from workers.device.checks import Plan, check_rows, plan_run
from workers.device.device_errors import let_go_of_locals, release_batch_memory, release_model_memory
from workers.device.device_kinds import avoid_slow_kernels, device_kind, native_dtypes
from workers.device.encoding import Encoded, encode, encode_singly
from workers.device.engine import (
    OPENVINO,
    Fidelity,
    FloatArray,
    LoadRequest,
    LoadResult,
    ModelHandle,
    ProbeRequest,
    ProbeResult,
    RunRequest,
    RunResult,
    Switched,
    UnloadRequest,
)
from workers.device.fidelity import compare, compare_logits, fidelity_rows, is_faithful, worse
from workers.device.halving import HalvedRun, packed_cost, padded_cost, run_halving
from workers.device.head_tasks import HEAD_TASKS
from workers.device.loading import LoadedModel, estimate_bytes, load_model, read_spec
from workers.device.rows import Rows
from workers.device.warm_pool import WarmPool
from workers.device.warming import Budgets, count_embeddings, embedding_plan, plain_plan

if TYPE_CHECKING:
    from ondol.contract.model_spec import ModelSpec
    from workers.device.openvino_switch import OpenVinoSwitch

_REFERENCE_DTYPE = "float32"
_CANDIDATE_DTYPES = ("bfloat16", "float16")
"""What `auto` tries, in this order. The second has more digits and less room: large values end in no number."""
_NARROW_DTYPE = "float16"

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a model makes of the built-in sentences, each alone: vectors [B, H], and the logits of its head."""

    vectors: FloatArray
    logits: FloatArray | None
    is_packed: bool

    def compared(self, reference: _Sample) -> Fidelity:
        """How close this is to what float32 gave."""
        vectors = compare(self.vectors, reference.vectors)
        if self.logits is None or reference.logits is None:
            return vectors
        return worse(vectors, compare_logits(self.logits, reference.logits))


class TorchEngine:
    """Loads, runs, probes and unloads models on `device`; `Engine` says what callers may expect."""

    def __init__(
        self,
        device: torch.device,
        *,
        memory_bytes: int,
        batch_tokens: int,
        measures_budget: bool = False,
        switch: OpenVinoSwitch | None = None,
    ) -> None:
        avoid_slow_kernels(device)
        self._device = device
        self._switch = switch
        self._pool: WarmPool[LoadedModel] = WarmPool(memory_bytes)
        self._budgets = Budgets(device, batch_tokens=batch_tokens, measures=measures_budget)
        self._unreported: list[str] = []
        """Evicted keys that no reply has named yet: a load that failed after making room has no field for them."""

    def load(self, request: LoadRequest) -> LoadResult:
        """Load the model, or find it loaded; raises what `load_model` and `WarmPool.make_room` raise."""
        loaded, load_s = self._ensure(request.model, is_pinned=request.is_pinned)
        return LoadResult(
            key=request.model.key,
            size_bytes=loaded.size_bytes,
            load_s=load_s,
            is_packed=loaded.wants_packed,
            why_padded=loaded.why_padded,
            evicted=self._report_evicted(),
            max_batch_tokens=self._budgets.of(request.model.key).max_batch_tokens,
        )

    def run(self, request: RunRequest) -> RunResult:
        """Vectors or logits of the rows, in as many passes as memory needs; OutOfDeviceMemory if no row fits."""
        loaded, load_s = self._ensure(request.model, is_pinned=False)
        switched = self._switch_over(loaded)
        plan = plan_run(request.spec, loaded.spec)
        rows = Rows.of_request(request)
        check_rows(rows, loaded.spec, num_embeddings=count_embeddings(loaded))
        started = time.perf_counter()
        run, max_batch_tokens = self._run_halving(loaded, rows, plan)
        forward_s = time.perf_counter() - started
        if self._switch is not None and loaded.converted is None:
            self._switch.ran(loaded.handle, forward_s, pad_token_id=loaded.spec.pad_token_id)
        if not run.pieces:
            raise OutOfDeviceMemory(run.errors[0].message)
        vectors = _put_together(run, rows, plan)
        overflown = _overflown(vectors, rows, plan) if request.model.dtype == _NARROW_DTYPE else {}
        return RunResult(
            key=request.model.key,
            vectors=vectors,
            load_s=load_s,
            forward_s=forward_s,
            num_padding=sum(piece.num_padding for _, _, piece in run.pieces),
            num_halvings=run.num_halvings,
            max_batch_tokens=max_batch_tokens,
            evicted=self._report_evicted(),
            row_errors=overflown | run.errors,
            engine=run.pieces[0][2].engine,
            is_packed=loaded.wants_packed,
            switched=switched,
        )

    def probe(self, request: ProbeRequest) -> ProbeResult:
        """The dtype for `auto`, by the built-in sentences; models are loaded for it and let go again."""
        reference = self._fidelity_sample(replace(request.model, dtype=_REFERENCE_DTYPE))
        fidelity = {_REFERENCE_DTYPE: reference.compared(reference)}
        for dtype in _CANDIDATE_DTYPES:
            if dtype not in native_dtypes(self._device):
                continue
            fidelity[dtype] = self._fidelity_sample(replace(request.model, dtype=dtype)).compared(reference)
            if is_faithful(fidelity[dtype]):
                return ProbeResult(device_kind(self._device), dtype, fidelity, reference.is_packed)
        return ProbeResult(device_kind(self._device), _REFERENCE_DTYPE, fidelity, reference.is_packed)

    def unload(self, request: UnloadRequest) -> None:
        """Let the model go; unknown keys are no error."""
        if self._pool.remove(request.key):
            self._left(request.key)
            release_model_memory(self._device)

    def _ensure(self, handle: ModelHandle, *, is_pinned: bool) -> tuple[LoadedModel, float]:
        """The model, loaded if it was not, and the seconds that took."""
        found = self._pool.use(handle.key)
        if found is not None:
            if is_pinned:
                self._pool.pin(handle.key)
            return found, 0.0
        started = time.perf_counter()
        spec = read_spec(handle)
        self._make_room(handle)
        loaded = self._evicting(lambda: self._load_warm(handle, spec, is_pinned=is_pinned))
        if self._switch is not None and spec.task not in HEAD_TASKS:
            self._switch.loaded(handle, pad_token_id=spec.pad_token_id)
        load_s = time.perf_counter() - started
        log.info(
            "model.loaded", key=handle.key, load_s=load_s, size_bytes=loaded.size_bytes, why_padded=loaded.why_padded
        )
        return loaded, load_s

    def _load_warm(self, handle: ModelHandle, spec: ModelSpec, *, is_pinned: bool) -> LoadedModel:
        """Load the model, take it into the pool and run it once; one that cannot be run is not left there."""
        loaded = load_model(handle, spec, self._device)
        size_bytes = loaded.size_bytes
        self._forget(self._pool.add(handle.key, loaded, size_bytes=size_bytes, is_pinned=is_pinned, ref=handle.ref))
        try:
            self._budgets.warm_up(loaded)
        except DeviceLost:
            raise  # the process ends with it
        except BaseException:
            self._pool.remove(handle.key)
            self._left(handle.key)
            raise
        return loaded

    def _evicting(self, load: Callable[[], _T]) -> _T:
        """What `load` gives. Out of memory, the model that was used longest ago goes, and it is tried again.

        The pool's limit is a guess at what the device can hold beside batches and other processes.
        """
        while True:
            try:
                return load()
            except OutOfDeviceMemory as exc:
                let_go_of_locals(exc)
                evicted = self._pool.evict_oldest()
                if evicted is None:
                    release_model_memory(self._device)
                    raise
                log.warning("model.evicted", key=evicted, reason="the device ran out of memory under its pool's limit")
            self._forget((evicted,))

    def _switch_over(self, loaded: LoadedModel) -> Switched | None:
        """Let the converted model take over if one is ready and fits into the pool."""
        ready = self._switch.take(loaded.handle.key) if self._switch is not None else None
        if ready is None:
            return None
        size_bytes = loaded.size_bytes + ready.model.size_bytes
        try:
            self._forget(self._pool.grow(loaded.handle.key, size_bytes, ref=loaded.handle.ref))
        except DeviceError as exc:
            log.info("openvino.not_used", ref=loaded.handle.ref, reason=exc.message)
            return None
        loaded.converted, loaded.size_bytes = ready.model, size_bytes
        self._budgets.set(loaded.handle.key, ready.max_batch_tokens)
        log.info("openvino.used", ref=loaded.handle.ref, key=loaded.handle.key, size_bytes=size_bytes)
        return Switched(OPENVINO, ready.fidelity, size_bytes)

    def _left(self, key: str) -> None:
        """The pool holds this model no longer."""
        self._budgets.forget(key)
        if self._switch is not None:
            self._switch.gone(key)

    def _make_room(self, handle: ModelHandle) -> None:
        self._forget(self._pool.make_room(estimate_bytes(handle), ref=handle.ref))

    def _forget(self, evicted: tuple[str, ...]) -> None:
        for key in evicted:
            self._left(key)
        self._unreported += evicted
        if evicted:
            release_model_memory(self._device)

    def _report_evicted(self) -> tuple[str, ...]:
        evicted, self._unreported = tuple(self._unreported), []
        return evicted

    def _run_halving(self, loaded: LoadedModel, rows: Rows, plan: Plan) -> tuple[HalvedRun[Encoded], int]:
        """The halved run and the token budget after it."""
        budget = self._budgets.of(loaded.handle.key)
        run = run_halving(
            rows.lengths.tolist(),
            lambda start, end: encode(loaded, rows.part(start, end), plan),
            budget=budget,
            cost_of=packed_cost if loaded.wants_packed else padded_cost,
            release=lambda: release_batch_memory(self._device),
        )
        return run, budget.max_batch_tokens

    def _fidelity_sample(self, handle: ModelHandle) -> _Sample:
        """The built-in sentences by the model's own pooling, and by its head if it has one; then it is let go."""
        sample = self._sample_of_loaded(handle)
        release_model_memory(self._device)
        return sample

    def _sample_of_loaded(self, handle: ModelHandle) -> _Sample:
        spec = read_spec(handle)
        rows = fidelity_rows(handle.path, spec, ref=handle.ref)
        self._make_room(handle)
        loaded = self._evicting(lambda: load_model(handle, spec, self._device))
        return self._evicting(lambda: _sample(loaded, rows, spec))


def _sample(loaded: LoadedModel, rows: Rows, spec: ModelSpec) -> _Sample:
    vectors = encode_singly(loaded, rows, embedding_plan(spec))
    logits = encode_singly(loaded, rows, plain_plan(loaded)) if loaded.head is not None else None
    return _Sample(vectors, logits, loaded.is_packed)


def _overflown(vectors: FloatArray, rows: Rows, plan: Plan) -> dict[int, OndolError]:
    """An error for each row with a value that is not a number, which is then zero."""
    is_bad = ~np.isfinite(vectors).all(axis=1)
    if not is_bad.any():
        return {}
    vectors[is_bad] = 0.0
    of_row = np.repeat(np.arange(len(rows.lengths)), rows.lengths if plan.gives_tokens else 1)
    message = f"the answer is no number in {_NARROW_DTYPE}: values grew too large; ask for dtype bfloat16 or float32"
    return {int(row): DeviceError(message) for row in np.unique(of_row[is_bad])}


def _put_together(run: HalvedRun[Encoded], rows: Rows, plan: Plan) -> FloatArray:
    """All pieces' vectors or logits in row order, zeros for the rows that did not fit."""
    if len(run.pieces) == 1 and not run.errors:
        return run.pieces[0][2].vectors
    ends = np.cumsum(rows.lengths) if plan.gives_tokens else np.arange(1, len(rows.lengths) + 1)
    starts = np.concatenate([[0], ends])
    vectors = np.zeros((int(ends[-1]), run.pieces[0][2].vectors.shape[1]), dtype=np.float32)
    for start, end, piece in run.pieces:
        vectors[starts[start] : starts[end]] = piece.vectors
    return vectors
