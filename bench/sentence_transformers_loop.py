"""sentence-transformers on the same texts and cores as `bench.bare_loop`; prints one JSON line.

With `--serve` it prints one for each line on stdin (`bench.rounds`), and keeps the vectors at `{"save": FILE}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from bench.corpus import docstring_texts
from bench.rounds import Figures, serve_rounds

BATCH_SIZE = 32
WARM_UP_TEXTS = 64


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cores", default="0")
    parser.add_argument("--num-texts", type=int, default=400)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--serve", action="store_true")
    parsed = parser.parse_args(argv)
    cores = [int(core) for core in parsed.cores.split(",")]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(len(cores))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(len(cores))
    dtype = getattr(torch, parsed.dtype)
    model = SentenceTransformer(str(parsed.folder), device="cpu", model_kwargs={"dtype": dtype})
    texts = docstring_texts(parsed.num_texts)
    model.encode(texts[:WARM_UP_TEXTS], batch_size=BATCH_SIZE, show_progress_bar=False)

    def measure(request: Figures) -> Figures:
        cpu_before, wall_before = time.process_time(), time.perf_counter()
        vectors = model.encode(
            texts,
            batch_size=BATCH_SIZE,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        cpu_s, wall_s = time.process_time() - cpu_before, time.perf_counter() - wall_before
        if "save" in request:
            np.save(request["save"], np.asarray(vectors, dtype=np.float32))
        return {"cpu_s": cpu_s, "wall_s": wall_s, "num_texts": len(vectors)}

    if parsed.serve:
        serve_rounds(measure)
    else:
        print(json.dumps(measure({})))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
