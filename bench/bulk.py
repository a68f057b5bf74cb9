"""Bulk: one list of texts through the whole system, beside sentence-transformers and beside the bare packed loop.

`python -m bench.bulk [--full]`. Ours: `client.embed` of the list, from the request to the last vector here, on an
embedded stack with one device of all cores. Theirs: `SentenceTransformer.encode(batch_size=32)` in a process of its own
on the same cores. All take turns in one run; CPU seconds are of all processes of a side, the client's included.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.corpus import docstring_texts
from bench.machine import Meter, Spent, cores
from bench.report import Line, Size, run_line
from bench.rounds import Peer
from bench.stacks import MODEL, MODELS_FOLDER, running_stack, stop_in_order, version_folder
from ondol.client.sync_client import Ondol
from ondol.client.vectors import Vectors
from ondol.demo.stack import Stack

NUM_TEXTS = (400, 4_000)
WARM_UP_TEXTS = 65
"""One more than a call takes: the first job of each number format, not a call."""
OURS = {"float32": "fp32", "bfloat16": "bf16", "auto": "dtype auto"}


@dataclass(frozen=True, slots=True)
class Ours:
    """A running stack, and the number format it is asked for."""

    name: str
    stack: Stack
    client: Ondol
    dtype: str


@dataclass(slots=True)
class Runs:
    """What the rounds of each contestant took."""

    wall_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    by_process: dict[str, dict[str, float]] = field(default_factory=dict)
    """CPU seconds by process in the last round of each of ours."""

    def note(self, name: str, *, wall_s: float, cpu_s: float) -> None:
        """One round."""
        self.wall_s.setdefault(name, []).append(wall_s)
        self.cpu_s.setdefault(name, []).append(cpu_s)


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    texts = docstring_texts(parsed.num_texts or size.pick(*NUM_TEXTS))
    line = Line(
        "bulk",
        f"{len(texts)} texts of mixed lengths as one bulk request",
        {"num_texts": len(texts), "rounds": size.rounds, "model": MODEL, "peer_batch_size": 32},
    )
    runs = Runs()
    has_openvino = importlib.util.find_spec("openvino") is not None
    if not has_openvino:
        line.leave_out("openvino: it is not installed")
    with tempfile.TemporaryDirectory(prefix="ondol-bench-") as folder, contextlib.ExitStack() as stacks:
        reference = Path(folder) / "reference.npy"
        # Left to `auto`, a model that computes much is converted for OpenVINO in the middle of a round.
        torch_stack = stacks.enter_context(running_stack({"ONDOL_DTYPE": "auto", "ONDOL_ENGINE": "torch"}))
        client = stacks.enter_context(Ondol(torch_stack.url, timeout=300))
        ours = [Ours(name, torch_stack, client, dtype) for dtype, name in OURS.items()]
        if has_openvino:
            stack = stacks.enter_context(running_stack({"ONDOL_ENGINE": "openvino", "ONDOL_DTYPE": "auto"}))
            ours.append(Ours("openvino", stack, stacks.enter_context(Ondol(stack.url, timeout=300)), "auto"))
        vectors = _take_turns(ours, texts, size.rounds, runs, reference)
        line.settings["cpu_by_process_s"] = runs.by_process
        _figures(line, runs, [each.name for each in ours])
        for name, found in vectors.items():
            _add_cosines(line, f"ours {name}", found, np.load(reference))
    for name, seconds in runs.wall_s.items():
        line.add(f"texts a second, {name}", "/s", [len(texts) / s for s in seconds])
    return line


def _take_turns(
    ours: Sequence[Ours], texts: list[str], rounds: int, runs: Runs, reference: Path
) -> Mapping[str, Vectors]:
    for each in ours:
        each.client.embed(texts[:WARM_UP_TEXTS], model=MODEL, dtype=each.dtype)
    vectors: dict[str, Vectors] = {}
    num = ["--num-texts", str(len(texts))]
    with contextlib.ExitStack() as peers:
        theirs = {dtype: peers.enter_context(sentence_transformers(dtype, num)) for dtype in ("float32", "bfloat16")}
        bare = {dtype: peers.enter_context(bare_loop(ours[0].stack, dtype, num)) for dtype in ("float32", "bfloat16")}
        for _ in range(rounds):
            for each in ours:
                vectors[each.name], spent = embed_measured(each.stack, each.client, texts, dtype=each.dtype)
                runs.note(f"ours {each.name}", wall_s=spent.wall_s, cpu_s=spent.cpu_s)
                runs.by_process[each.name] = spent.by_process
            for dtype, peer in theirs.items():
                found = peer.run(**({"save": str(reference)} if dtype == "float32" else {}))
                runs.note(f"theirs {OURS[dtype]}", wall_s=found["wall_s"], cpu_s=found["cpu_s"])
            for dtype, peer in bare.items():
                found = peer.run()
                runs.note(f"bare {OURS[dtype]}", wall_s=found["wall_s"], cpu_s=found["cpu_s"])
    return vectors


def sentence_transformers(dtype: str, more: Sequence[str]) -> Peer:
    """The library in a process of its own on all cores."""
    where = ["--folder", str(MODELS_FOLDER / MODEL), "--cores", _core_list(), "--dtype", dtype, "--serve"]
    return Peer(["bench.sentence_transformers_loop", *where, *more])


def bare_loop(stack: Stack, dtype: str, more: Sequence[str], *, num_calls: int = 0) -> Peer:
    """The product's engine without the system, on all cores."""
    where = ["--folder", str(version_folder(stack)), "--cores", _core_list(), "--dtype", dtype, "--serve"]
    return Peer(["bench.bare_loop", *where, "--num-calls", str(num_calls), *more])


def embed_measured(stack: Stack, client: Ondol, texts: list[str], *, dtype: str) -> tuple[Vectors, Spent]:
    """The vectors by the SDK, and what it took."""
    meter = Meter((stack.pid,))
    vectors = client.embed(texts, model=MODEL, dtype=dtype, as_job=True)
    return vectors, meter.stop()


def _figures(line: Line, runs: Runs, ours: Sequence[str]) -> None:
    for measure_name, taken in (("wall", runs.wall_s), ("CPU", runs.cpu_s)):
        for name in ours:
            theirs = "bf16" if name == "bf16" else "fp32"
            title = f"sentence-transformers {theirs} ÷ ours {name}, {measure_name} s"
            line.add_ratio(title, taken[f"theirs {theirs}"], taken[f"ours {name}"])
    for dtype in ("fp32", "bf16"):
        name = f"ours {dtype} ÷ bare packed loop {dtype}, CPU s"
        line.add_ratio(name, runs.cpu_s[f"ours {dtype}"], runs.cpu_s[f"bare {dtype}"], "the whole system's own cost")


def _add_cosines(line: Line, name: str, vectors: Vectors, reference: Vectors) -> None:
    cosines = (vectors.astype(np.float64) * reference).sum(axis=1)
    cosines /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    line.add(f"cosine to sentence-transformers fp32, {name}: mean", "", [cosines.mean()])
    line.add(f"cosine to sentence-transformers fp32, {name}: least", "", [cosines.min()])


def _core_list() -> str:
    return ",".join(str(core) for core in cores())


if __name__ == "__main__":
    stop_in_order()
    sys.exit(
        run_line(
            measure,
            name="bulk",
            about=__doc__,
            options={"--num-texts": {"type": int, "help": "default: 400, with --full 4,000"}},
        )
    )
