"""sentence-transformers on the same texts and cores as `bench.bare_loop`; prints one JSON line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from bench.corpus import docstring_texts

BATCH_SIZE = 32
WARM_UP_TEXTS = 64


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cores", default="0")
    parser.add_argument("--num-texts", type=int, default=400)
    parsed = parser.parse_args(argv)
    cores = [int(core) for core in parsed.cores.split(",")]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(len(cores))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(len(cores))
    model = SentenceTransformer(str(parsed.folder), device="cpu")
    texts = docstring_texts(parsed.num_texts)
    model.encode(texts[:WARM_UP_TEXTS], batch_size=BATCH_SIZE, show_progress_bar=False)
    cpu_before, wall_before = time.process_time(), time.perf_counter()
    vectors = model.encode(texts, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)
    cpu_s, wall_s = time.process_time() - cpu_before, time.perf_counter() - wall_before
    print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "num_texts": len(vectors)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
