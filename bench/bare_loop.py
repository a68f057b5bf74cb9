"""The bare packed loop: the product's engine in one process, without queue, SQL, Redis or HTTP. The floor.

`python -m bench.bare_loop --folder VERSION --dtype float32 --cores 0 --num-texts 4000` prints one JSON line. With
`--serve` it prints one for each line on stdin (`bench.rounds`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from bench.corpus import docstring_texts
from bench.rounds import Figures, serve_rounds
from workers.device.pinning import SMALL_CACHES

if TYPE_CHECKING:
    from workers.device.engine import ModelHandle, RunSpec
    from workers.device.torch_engine import TorchEngine

LATENCY_TEXT = "How do I top up my card by bank transfer?"
MAX_LENGTH = 256
MEMORY_BYTES = 8 * 1024**3


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cores", default="0")
    parser.add_argument("--num-texts", type=int, default=4_000)
    parser.add_argument("--num-calls", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, default=1_024)
    parser.add_argument("--serve", action="store_true")
    parsed = parser.parse_args(argv)
    cores = [int(core) for core in parsed.cores.split(",")]
    os.sched_setaffinity(0, cores)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(len(cores))
    for name, value in {"GOMP_SPINCOUNT": "1000", **SMALL_CACHES}.items():  # as the product sets them
        os.environ.setdefault(name, value)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import torch

    from workers.device.engine import LoadRequest, ModelHandle, RunSpec
    from workers.device.torch_engine import TorchEngine

    torch.set_num_threads(len(cores))
    engine = TorchEngine(torch.device("cpu"), memory_bytes=MEMORY_BYTES, batch_tokens=parsed.batch_tokens)
    handle = ModelHandle("bare", "bare", parsed.folder, parsed.dtype)
    engine.load(LoadRequest(handle, is_pinned=True))
    spec = RunSpec("embedding", None, -1)
    tokenizer = Tokenizer.from_file(str(parsed.folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    texts = docstring_texts(parsed.num_texts)
    embed(engine, handle, spec, texts[:64], batch_tokens=parsed.batch_tokens, tokenizer=tokenizer)

    def measure(_request: Figures) -> Figures:
        cpu_before, wall_before = time.process_time(), time.perf_counter()
        vectors = embed(engine, handle, spec, texts, batch_tokens=parsed.batch_tokens, tokenizer=tokenizer)
        cpu_s, wall_s = time.process_time() - cpu_before, time.perf_counter() - wall_before
        times = call_ms(engine, handle, spec, parsed.num_calls, tokenizer=tokenizer)
        call = statistics.median(times) if times else None
        return {"cpu_s": cpu_s, "wall_s": wall_s, "num_texts": len(vectors), "call_ms": call}

    if parsed.serve:
        serve_rounds(measure)
    else:
        print(json.dumps(measure({})))
    return 0


def embed(
    engine: TorchEngine,
    handle: ModelHandle,
    spec: RunSpec,
    texts: list[str],
    *,
    batch_tokens: int,
    tokenizer: Tokenizer,
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Float32 unit vectors [N, H] of the texts, packed in arrival order."""
    from workers.device.engine import RunRequest

    ids = [np.array(found.ids, dtype=np.int32) for found in tokenizer.encode_batch_fast(texts)]
    parts, start = [], 0
    while start < len(ids):
        end, tokens = start, 0
        while end < len(ids) and (end == start or tokens + len(ids[end]) <= batch_tokens):
            tokens += len(ids[end])
            end += 1
        rows = ids[start:end]
        request = RunRequest(handle, spec, tuple(len(row) for row in rows), np.concatenate(rows))
        parts.append(engine.run(request).vectors)
        start = end
    vectors = np.concatenate(parts)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def call_ms(engine: TorchEngine, handle: ModelHandle, spec: RunSpec, num: int, *, tokenizer: Tokenizer) -> list[float]:
    """Milliseconds of single forward passes of one short text, tokenising included."""
    times = []
    for _ in range(num):
        started = time.perf_counter()
        embed(engine, handle, spec, [LATENCY_TEXT], batch_tokens=1_024, tokenizer=tokenizer)
        times.append((time.perf_counter() - started) * 1e3)
    return times


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
