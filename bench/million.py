"""A million: one bulk job over an uploaded file of short texts, whose worker is killed twice on the way.

`python -m bench.million [--num 1000000]`. A tiny random model. At the end every row must be there, once, in order: the
id column of the result is compared with that of the file, and some vectors with those of the texts by themselves. The
memory of every process is looked at every second.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from bench.machine import processes
from bench.report import Line, Series, Size, run_line
from bench.stacks import TINY, import_tiny, running_stack, stop_in_order
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from ondol.demo.stack import Stack

WORKER = "workers.main"
KILL_AT = (1 / 3, 2 / 3)
LOOK_S = 1.0
PROGRESS_LOOK_S = 0.1
NUM_COMPARED = 50
MAX_DIFFERENCE = 1e-5
"""Of one vector's number: packed beside others, a float32 text differs from itself alone by rounding only."""
READ_ROWS = 65_536
_WORDS = ("fire", "floor", "house", "queue", "warm", "text", "night", "river", "stone", "winter", "paper", "light")


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it; RuntimeError if a row is missing, twice, or not in its place."""
    num = parsed.num or size.pick(20_000, 1_000_000)
    line = Line("million", f"one bulk job over a file of {num:,} texts, its worker killed twice", {"num": num})
    with tempfile.TemporaryDirectory(prefix="ondol-bench-") as folder:
        file, result = Path(folder) / "texts.jsonl", Path(folder) / "result.parquet"
        expected = write_texts(file, num)
        with running_stack({"ONDOL_DTYPE": "float32"}) as stack, Ondol(stack.url, timeout=600) as client:
            import_tiny(client, stack.data_dir)
            with sampled_memory(stack) as samples:
                began = time.perf_counter()
                uploaded = client.files.put(file)
                line.add("upload", "s", [time.perf_counter() - began])
                job, kills = _run(stack, client, uploaded.id, num)
                line.add("submit to succeeded, two kills included", "s", [time.perf_counter() - began])
                line.add("texts a second, two kills included", "/s", [num / (time.perf_counter() - began)])
                began = time.perf_counter()
                job.download(result, format="parquet")
                line.add("download of the result", "s", [time.perf_counter() - began])
            found = check_result(result, num, client)
    if found != expected:
        raise RuntimeError("the ids of the result are not those of the file, in its order")
    line.texts |= {"sha256 of the ids in order": found, "kills": ", ".join(kills)}
    line.add("rows, each once and in order", "", [num], f"sha256 of the ids {found[:16]}…")
    line.add("kills of the worker", "", [len(kills)], ", ".join(kills))
    if len(kills) < len(KILL_AT):
        line.leave_out(
            f"{len(KILL_AT) - len(kills)} kills of the worker: the job ended too soon, more texts are needed"
        )
    _memory_figures(line, samples)
    return line


def write_texts(file: Path, num: int) -> str:
    """Write `{"id", "text"}` lines; the SHA-256 of the ids in order."""
    digest = hashlib.sha256()
    with file.open("w", encoding="utf-8") as out:
        for row in range(num):
            row_id = f"row-{row * 7919 % num:07d}-{row}"  # not in the order of any sort
            digest.update(row_id.encode() + b"\n")
            out.write(json.dumps({"id": row_id, "text": text_of(row)}) + "\n")
    return digest.hexdigest()


def text_of(row: int) -> str:
    """A short text that tells its row."""
    count = len(_WORDS)
    return f"{_WORDS[row % count]} {_WORDS[row // count % count]} {row}"


def check_result(file: Path, num: int, client: Ondol) -> str:
    """The SHA-256 of the result's ids in order; RuntimeError for a wrong number of rows or a vector of another text."""
    digest, start = hashlib.sha256(), 0
    compared = set(np.linspace(0, num - 1, min(num, NUM_COMPARED), dtype=int).tolist())
    for batch in pq.ParquetFile(file).iter_batches(READ_ROWS):
        ids, vectors = batch.column("id").to_pylist(), batch.column("embedding")
        for row_id in ids:
            digest.update(str(row_id).encode() + b"\n")
        for row in sorted(compared & set(range(start, start + len(ids)))):
            alone = client.embed(text_of(row), model=TINY)
            difference = np.abs(np.asarray(vectors[row - start].as_py(), dtype=np.float32) - alone).max()
            if not difference <= MAX_DIFFERENCE:
                raise RuntimeError(f"the vector of row {row} differs by {difference} from that of its text alone")
        start += len(ids)
    if start != num:
        raise RuntimeError(f"the result has {start} rows, not {num}")
    return digest.hexdigest()


def _run(stack: Stack, client: Ondol, file_id: str, num: int) -> tuple[Job, list[str]]:
    job = client.jobs.create(
        kind="embedding", model=TINY, input_file=file_id, input_columns={"text": "text", "id": "id"}
    )
    kills: list[str] = []
    left = [share * num for share in KILL_AT]
    while not job.refresh().has_ended:
        done = job.progress.done if job.progress else 0
        if left and done >= left[0]:
            left.pop(0)
            _kill_worker(stack)
            kills.append(f"at {done:,}")
        threading.Event().wait(PROGRESS_LOOK_S)  # between two looks
    if job.status != "succeeded":
        raise RuntimeError(f"the job {job.status}: {job.error}")
    return job, kills


def _kill_worker(stack: Stack) -> None:
    for seen in processes(stack.pid):
        if seen.name == WORKER:
            os.kill(seen.pid, signal.SIGKILL)


@contextlib.contextmanager
def sampled_memory(stack: Stack) -> Iterator[dict[str, list[tuple[float, float]]]]:
    """(seconds, resident MiB) of each process by name, once a second while the block runs; restarts go on the curve."""
    samples: dict[str, list[tuple[float, float]]] = {}
    stopped, began = threading.Event(), time.perf_counter()

    def look() -> None:
        while not stopped.wait(LOOK_S):
            at = round(time.perf_counter() - began, 1)
            for seen in processes(stack.pid):
                samples.setdefault(seen.name, []).append((at, round(seen.rss_mib, 1)))

    thread = threading.Thread(target=look, name="memory", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


def _memory_figures(line: Line, samples: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in sorted(samples.items()):
        if len(points) < 2 or max(mib for _, mib in points) < 1:
            continue
        line.series.append(Series("memory", name, "seconds", "resident MiB", tuple(points)))
        half = [mib for _, mib in points[len(points) // 2 :]]
        note = f"at half time {half[0]:.0f}, at the end {half[-1]:.0f}"
        line.add(f"most memory of {name}", "MiB", [max(mib for _, mib in points)], note)


if __name__ == "__main__":
    stop_in_order()
    options = {"--num": {"type": int, "help": "texts; default: 20,000, with --full 1,000,000"}}
    sys.exit(run_line(measure, name="million", about=__doc__, options=options))
