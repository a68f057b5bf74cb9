"""The engine by itself: beside sentence-transformers and OpenVINO, and with OpenMP threads that spin long or short.

`python -m bench.engine --folder VERSION [--rounds 3]`: `VERSION` is an imported model folder (one with `ondol.json`,
below `<data>/cache`). The compared programs take turns, each in a process of its own.
Every run is printed, and the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.device.openvino_cache import ConversionCache, DtypeReport, openvino_version, source_digest

LIBRARY_SPIN_COUNT = "300000"  # libgomp's documented default where OMP_WAIT_POLICY is not set
OUR_SPIN_COUNT = "1000"
BUSY = "while True: pass"
Figures = dict[str, Any]


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-texts", type=int, default=400)
    parsed = parser.parse_args(argv)
    compare_with_sentence_transformers(parsed.folder, parsed.rounds, parsed.num_texts)
    compare_with_openvino(parsed.folder, parsed.rounds)
    for is_busy in (False, True):
        compare_spinning(parsed.folder, parsed.rounds, parsed.num_texts // 2, is_busy=is_busy)
    return 0


def compare_with_sentence_transformers(folder: Path, rounds: int, num_texts: int) -> None:
    """CPU and wall seconds of sentence-transformers (batches of 32) over ours, one core, fp32."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_bare(folder, num_texts, cores="0", spin=OUR_SPIN_COUNT))
        theirs.append(_run(["bench.sentence_transformers_loop"], folder, num_texts, cores="0", spin=OUR_SPIN_COUNT))
    for name in ("cpu_s", "wall_s"):
        ratios = [b[name] / a[name] for a, b in zip(ours, theirs, strict=True)]
        _report(f"sentence-transformers / ours, {name}", ratios)


def compare_with_openvino(folder: Path, rounds: int) -> None:
    """Torch's CPU seconds over OpenVINO's, by dtype, on one core, as the converting child measures them for `auto`."""
    if openvino_version() is None:
        print("OpenVINO is not installed: not compared")
        return
    found: dict[str, list[DtypeReport]] = {}
    for _ in range(rounds):
        for dtype, report in _convert(folder).items():
            found.setdefault(dtype, []).append(report)
    for dtype, reports in found.items():
        _report(f"{dtype}: torch / OpenVINO, batches", [one.tokens_per_s / one.torch_tokens_per_s for one in reports])
        _report(f"{dtype}: torch / OpenVINO, one text", [one.torch_one_text_s / one.one_text_s for one in reports])
        _report(f"{dtype}: smallest cosine to torch in float32", [one.fidelity.min_cosine for one in reports])


def _convert(folder: Path) -> Mapping[str, DtypeReport]:
    digest = source_digest(folder)
    with tempfile.TemporaryDirectory() as root:
        options = ("--folder", str(folder), "--ref", "bench", "--digest", digest, "--cache", root, "--threads", "1")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = ["taskset", "-c", "0", sys.executable, "-m", "workers.device.openvino_child", *options]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        [entry] = Path(root).iterdir()
        kind = entry.name.split("-", 2)[2]
        kept = ConversionCache(Path(root), device_kind=kind, openvino=openvino_version() or "").find(digest)
    assert kept is not None, "the child has kept it"
    return kept.dtypes


def compare_spinning(folder: Path, rounds: int, num_texts: int, *, is_busy: bool) -> None:
    """Two cores, with the library's spin count and with ours; `is_busy`: beside one process that never rests."""
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if is_busy else None
    found: dict[str, list[Figures]] = {LIBRARY_SPIN_COUNT: [], OUR_SPIN_COUNT: []}
    try:
        for _ in range(rounds):
            for spin, runs in found.items():
                assert busy is None or busy.poll() is None, "the busy process has ended"
                runs.append(_bare(folder, num_texts, cores="0,1", spin=spin))
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    where = "beside a busy process" if is_busy else "quiet"
    for spin, runs in found.items():
        for name in ("wall_s", "call_ms"):
            _report(f"{where}, spin {spin}, {name}", [run[name] for run in runs])


def _bare(folder: Path, num_texts: int, *, cores: str, spin: str) -> Figures:
    return _run(["bench.bare_loop", "--num-calls", "40"], folder, num_texts, cores=cores, spin=spin)


def _run(module: list[str], folder: Path, num_texts: int, *, cores: str, spin: str) -> Figures:
    command = [sys.executable, "-m", *module, "--folder", str(folder), "--num-texts", str(num_texts), "--cores", cores]
    environment = {**os.environ, "GOMP_SPINCOUNT": spin}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _report(name: str, values: list[float]) -> None:
    runs = ", ".join(f"{value:.2f}" for value in values)
    print(f"{name:58} median {statistics.median(values):8.2f}   runs {runs}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
