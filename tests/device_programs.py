"""A device program for tests: the product's protocol loop around an engine that hashes token ids instead of a model.

`python -m tests.device_programs --fd … --device cpu:0 …` takes the arguments of `workers.device` and some of its own,
which a test puts in front: a token that ends the process, a delay a token, a size above which memory runs out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ondol.contract.errors import InvalidPayload, OutOfDeviceMemory
from workers.device.arguments import DeviceArguments, add_device_arguments, device_arguments
from workers.device.engine import (
    Fidelity,
    FloatArray,
    IntArray,
    LoadRequest,
    LoadResult,
    ProbeRequest,
    ProbeResult,
    RunRequest,
    RunResult,
    UnloadRequest,
)
from workers.device.halving import HalvedRun, TokenBudget, packed_cost, run_halving
from workers.device.lifeline import bind_to_parent, lead_process_group
from workers.device.pinning import pin
from workers.device.serve import serve

MODEL_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and how slow it is; the defaults make a fast program that never fails."""

    trigger_token: int | None = None
    """A row with this token id ends the process by SIGKILL, whatever else is in the batch."""
    hang_token: int | None = None
    """A row with this token id never comes to an end."""
    refused_token: int | None = None
    """A batch with this token id is refused as a whole."""
    delay_us_per_token: float = 0.0
    oom_above_tokens: int | None = None
    """A forward pass of more tokens runs out of memory."""
    dims: int = 32


def hash_vector(token_ids: IntArray, dims: int, type_ids: IntArray | None = None) -> FloatArray:
    """The vector [dims] of a row: a function of its token ids and type ids (zeros say nothing), of unit length."""
    content = token_ids.astype("<i4").tobytes()
    if type_ids is not None and type_ids.any():
        content += type_ids.astype("<i4").tobytes()
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    vector = np.random.default_rng(seed).standard_normal(dims, dtype=np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


class HashEngine:
    """An engine without a model: `hash_vector` of every row, with the faults it was given."""

    def __init__(self, faults: Faults, *, batch_tokens: int) -> None:
        self._faults = faults
        self._budget = TokenBudget(batch_tokens)
        self._loaded: set[str] = set()

    def load(self, request: LoadRequest) -> LoadResult:
        load_s = self._load(request.model.key)
        return LoadResult(request.model.key, MODEL_BYTES, load_s, is_packed=True, why_padded=None, evicted=())

    def run(self, request: RunRequest) -> RunResult:
        load_s = self._load(request.model.key)
        started = time.perf_counter()
        ends = np.cumsum(request.lengths)
        places = [slice(end - n, end) for end, n in zip(ends, request.lengths, strict=True)]
        types = np.zeros_like(request.token_ids) if request.type_ids is None else request.type_ids
        rows = [(request.token_ids[place], types[place]) for place in places]
        run = run_halving(
            request.lengths,
            lambda start, end: self._forward(rows[start:end], is_by_token=_is_by_token(request)),
            budget=self._budget,
            cost_of=packed_cost,
            release=lambda: None,
        )
        if len(run.errors) == len(rows):
            raise run.errors[0]
        return RunResult(
            key=request.model.key,
            vectors=_put_together(run, request, self._faults.dims),
            load_s=load_s,
            forward_s=time.perf_counter() - started,
            num_padding=0,
            num_halvings=run.num_halvings,
            max_batch_tokens=self._budget.max_batch_tokens,
            row_errors=run.errors,
        )

    def probe(self, request: ProbeRequest) -> ProbeResult:  # noqa: ARG002  # every model is alike
        return ProbeResult("cpu", "float32", {"float32": Fidelity(1.0, 1.0)}, is_packed=True)

    def unload(self, request: UnloadRequest) -> None:
        self._loaded.discard(request.key)

    def _load(self, key: str) -> float:
        if key in self._loaded:
            return 0.0
        self._loaded.add(key)
        return 0.001

    def _forward(self, rows: list[tuple[IntArray, IntArray]], *, is_by_token: bool) -> FloatArray:
        """Vectors of rows of token ids and type ids."""
        num_tokens = sum(len(ids) for ids, _ in rows)
        if self._faults.oom_above_tokens is not None and num_tokens > self._faults.oom_above_tokens:
            raise OutOfDeviceMemory(f"{num_tokens} tokens do not fit")
        if self._faults.refused_token is not None and any(self._faults.refused_token in ids for ids, _ in rows):
            raise InvalidPayload("a row of the batch is refused")
        if self._faults.trigger_token is not None and any(self._faults.trigger_token in ids for ids, _ in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._faults.hang_token is not None and any(self._faults.hang_token in ids for ids, _ in rows):
            threading.Event().wait()
        if self._faults.delay_us_per_token:
            time.sleep(num_tokens * self._faults.delay_us_per_token / 1e6)
        if is_by_token:
            rows = [(ids[i : i + 1], types[i : i + 1]) for ids, types in rows for i in range(len(ids))]
        return np.stack([hash_vector(ids, self._faults.dims, types) for ids, types in rows])


def add_fault_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trigger-token", type=int)
    parser.add_argument("--hang-token", type=int)
    parser.add_argument("--refused-token", type=int)
    parser.add_argument("--delay-us-per-token", type=float, default=0.0)
    parser.add_argument("--oom-above-tokens", type=int)
    parser.add_argument("--dims", type=int, default=32)
    parser.add_argument("--does-not-start-if", type=Path, help="a file; while it exists the process ends at once")


def main(argv: list[str]) -> int:
    parent_pid = os.getppid()
    parser = argparse.ArgumentParser(prog="tests.device_programs")
    add_device_arguments(parser)
    add_fault_arguments(parser)
    parsed = parser.parse_args(argv)
    arguments = device_arguments(parsed)
    if parsed.does_not_start_if is not None and parsed.does_not_start_if.exists():
        return 1
    bind_to_parent(parent_pid)
    lead_process_group()
    pin(arguments)
    faults = Faults(
        trigger_token=parsed.trigger_token,
        hang_token=parsed.hang_token,
        refused_token=parsed.refused_token,
        delay_us_per_token=parsed.delay_us_per_token,
        oom_above_tokens=parsed.oom_above_tokens,
        dims=parsed.dims,
    )
    with socket.socket(fileno=arguments.fd) as sock:
        serve(sock, HashEngine(faults, batch_tokens=arguments.batch_tokens), _ready(arguments))
    return 0


def _ready(arguments: DeviceArguments) -> dict[str, object]:
    return {
        "device": arguments.device,
        "device_kind": "cpu",
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": arguments.threads,
        "memory_bytes": arguments.memory_bytes,
        "dtypes": ["float32"],
    }


def _is_by_token(request: RunRequest) -> bool:
    return request.spec.task == "token-classification" or request.spec.pooling == ("none",)


def _put_together(run: HalvedRun[FloatArray], request: RunRequest, dims: int) -> FloatArray:
    if not run.errors:
        return np.concatenate([piece for _, _, piece in run.pieces])
    if _is_by_token(request):
        starts = np.concatenate([[0], np.cumsum(request.lengths)])
    else:
        starts = np.arange(len(request.lengths) + 1)
    vectors = np.zeros((int(starts[-1]), dims), dtype=np.float32)
    for start, end, piece in run.pieces:
        vectors[starts[start] : starts[end]] = piece
    return vectors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
