"""One GPU: a bulk job of 20,000 texts and calls at concurrency 64, beside sentence-transformers on the same GPU.

`python -m bench.gpu [--full]`. Ours: `client.embed` of the list on an embedded stack, from the request to the last
vector here; and the bare engine, tokenising included, in a process of its own. Theirs: `SentenceTransformer.encode`,
every fifth of the texts, at several batch sizes, in a process of its own for each number format; in bfloat16 also with
cuDNN's attention switched off, which compiles for each shape of a batch. All take turns in one run, on all cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.corpus import docstring_texts
from bench.machine import Meter
from bench.report import Line, Size, run_line
from bench.rounds import Figures, Peer, serve_rounds
from bench.stacks import MODEL, MODELS_FOLDER, running_stack, stop_in_order, version_folder
from ondol.client.sync_client import Ondol
from ondol.demo.stack import Stack

NUM_TEXTS = (5_000, 20_000)
NUM_CALLS = (500, 2_000)
NUM_DISTINCT = 8_000
"""Paragraphs; where more texts are wanted these come again, each with a number in front."""
THEIR_SHARE = 5
BATCH_SIZES = (32, 128, 256)
CONCURRENCY = 64
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
NO_CUDNN = "bfloat16-without-cudnn-attention"
ENGINE_TOKENS = 65_536
WARM_UP_TEXTS = 512
MAX_LENGTH = 256


@dataclass(slots=True)
class Rates:
    """Texts a second of each round, by contestant; and CPU seconds of our processes in each one's last round."""

    per_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def note(self, name: str, per_s: float) -> None:
        """One round."""
        self.per_s.setdefault(name, []).append(per_s)


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    num = parsed.num_texts or size.pick(*NUM_TEXTS)
    texts = mixed_texts(num)
    settings = {"num_texts": num, "rounds": size.rounds, "model": MODEL, "num_calls": size.pick(*NUM_CALLS)}
    line = Line("gpu", f"{num} texts of mixed lengths, and calls, on one GPU", settings)
    rates, calls = Rates(), dict[str, list[Figures]]()
    given = {"ONDOL_DEVICES": "cuda:0", "ONDOL_MODELS": MODEL}
    with contextlib.ExitStack() as held:
        stack = held.enter_context(running_stack(given))
        client = held.enter_context(Ondol(stack.url, timeout=300))
        for dtype in (*DTYPES, "auto"):
            client.embed(texts[:WARM_UP_TEXTS], model=MODEL, dtype=dtype, as_job=True)
        where = ["--num-texts", str(num)]
        ours = _peers(held, "engine", DTYPES, ["--folder", str(version_folder(stack)), *where])
        theirs = _peers(held, "theirs", (*DTYPES, NO_CUDNN), ["--folder", str(MODELS_FOLDER / MODEL), *where])
        line.machine["gpu"] = ours["float32"].run(asks="gpu")["gpu"]
        caller = held.enter_context(Peer(["bench.call_client"]))
        for number in range(size.rounds + 1):
            # The first round is not counted: kernels are loaded, and cuDNN compiles for shapes that come again.
            noted = rates if number else Rates()
            vectors = _our_round(stack, client, texts, noted)
            _their_round(ours, theirs, noted)
            if not number:
                continue
            calls.setdefault("auto", []).append(_calls(stack, caller, size.pick(*NUM_CALLS)))
        kept = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="ondol-bench-"))) / "theirs.npy"
        theirs["float32"].run(save=str(kept), batch_size=128)
        reference = np.load(kept)
    line.settings["cpu_by_process_s"] = rates.cpu_s
    _figures(line, rates, calls["auto"])
    for name, found in vectors.items():
        cosines = (found[::THEIR_SHARE][: len(reference)] * reference).sum(axis=1)
        line.add(f"cosine to sentence-transformers fp32, ours {name}: least", "", [float(cosines.min())])
    return line


def mixed_texts(num: int) -> list[str]:
    """`num` distinct texts."""
    distinct = docstring_texts(min(num, NUM_DISTINCT))
    again = (f"{i // NUM_DISTINCT}. {distinct[i % NUM_DISTINCT]}" for i in range(NUM_DISTINCT, num))
    return [*distinct, *again]


def _peers(held: contextlib.ExitStack, side: str, dtypes: Any, more: list[str]) -> dict[str, Peer]:
    return {name: held.enter_context(Peer(["bench.gpu", "--side", side, "--dtype", name, *more])) for name in dtypes}


def _our_round(stack: Stack, client: Ondol, texts: list[str], rates: Rates) -> dict[str, Any]:
    vectors = {}
    for dtype, name in (*DTYPES.items(), ("auto", "dtype auto")):
        meter = Meter((stack.pid,))
        vectors[name] = client.embed(texts, model=MODEL, dtype=dtype, as_job=True)
        spent = meter.stop()
        rates.note(f"ours, one job, {name}", len(texts) / spent.wall_s)
        rates.cpu_s[name] = spent.by_process
    return vectors


def _their_round(ours: Mapping[str, Peer], theirs: Mapping[str, Peer], rates: Rates) -> None:
    for dtype, peer in ours.items():
        rates.note(f"ours, bare engine, {DTYPES[dtype]}", peer.run()["per_s"])
    for dtype, peer in theirs.items():
        for batch_size in BATCH_SIZES:
            name = f"sentence-transformers, {DTYPES.get(dtype, 'bf16 without cuDNN attention')}, batch {batch_size}"
            rates.note(name, peer.run(batch_size=batch_size)["per_s"])


def _calls(stack: Stack, caller: Peer, num: int) -> Figures:
    port = urlsplit(stack.url).port or 80
    asked = {"host": "127.0.0.1", "port": port, "path": "/v1/embeddings", "model": MODEL, "texts": "mixed"}
    return caller.run(**asked, concurrency=CONCURRENCY, num=num)


def _figures(line: Line, rates: Rates, calls: list[Figures]) -> None:
    for name, found in rates.per_s.items():
        line.add(f"texts a second, {name}", "/s", found)
    for short in DTYPES.values():
        named = [name for name in rates.per_s if name.startswith("sentence-transformers")]
        of_format = [name for name in named if name.startswith(f"sentence-transformers, {short}, ")]
        best = max(named, key=lambda name: statistics.median(rates.per_s[name]))
        for theirs in dict.fromkeys((*of_format, best)):
            for ours in (f"ours, one job, {short}", f"ours, bare engine, {short}"):
                line.add_ratio(f"{ours} ÷ {theirs}", rates.per_s[ours], rates.per_s[theirs])
    line.add(f"calls a second at {CONCURRENCY}", "/s", [one["num"] / one["wall_s"] for one in calls])
    for figure in ("p50", "p99"):
        line.add(f"calls at {CONCURRENCY}: {figure}", "ms", [one[f"{figure}_ms"] for one in calls])


def serve_side(argv: list[str]) -> int:
    """A contestant as a child: the bare engine or sentence-transformers, one round a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=("engine", "theirs"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--num-texts", type=int, required=True)
    parsed = parser.parse_args(argv)
    texts = mixed_texts(parsed.num_texts)
    if parsed.side == "theirs":
        _serve_theirs(parsed.folder, parsed.dtype, texts[::THEIR_SHARE])
    else:
        _serve_engine(parsed.folder, parsed.dtype, texts)
    return 0


def _serve_engine(folder: Path, dtype: str, texts: list[str]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    import torch
    from tokenizers import Tokenizer

    from bench.bare_loop import embed
    from workers.device.engine import LoadRequest, ModelHandle, RunSpec
    from workers.device.torch_engine import TorchEngine

    device = torch.device("cuda", 0)
    engine = TorchEngine(device, memory_bytes=2**33, batch_tokens=ENGINE_TOKENS, measures_budget=True)
    handle, spec = ModelHandle("bare", "bare", folder, dtype), RunSpec("embedding", None, -1)
    loaded = engine.load(LoadRequest(handle, is_pinned=True))
    budget = loaded.max_batch_tokens or ENGINE_TOKENS
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)

    def run(request: Figures) -> Figures:
        if request.get("asks") == "gpu":
            return {"gpu": torch.cuda.get_device_name(device)}
        began = time.perf_counter()
        embed(engine, handle, spec, texts, batch_tokens=budget, tokenizer=tokenizer)
        return {"per_s": len(texts) / (time.perf_counter() - began), "budget": budget}

    embed(engine, handle, spec, texts[:WARM_UP_TEXTS], batch_tokens=budget, tokenizer=tokenizer)
    serve_rounds(run)


def _serve_theirs(folder: Path, dtype: str, texts: list[str]) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.backends.cuda.enable_cudnn_sdp(dtype != NO_CUDNN)
    kept = getattr(torch, dtype.partition("-")[0])
    model = SentenceTransformer(str(folder), device="cuda", model_kwargs={"dtype": kept})
    options: dict[str, Any] = {"normalize_embeddings": True, "show_progress_bar": False, "convert_to_numpy": True}

    def run(request: Figures) -> Figures:
        began = time.perf_counter()
        vectors = model.encode(texts, batch_size=request["batch_size"], **options)
        wall_s = time.perf_counter() - began
        if "save" in request:
            np.save(request["save"], np.asarray(vectors, dtype=np.float32))
        return {"per_s": len(texts) / wall_s}

    for batch_size in BATCH_SIZES:
        model.encode(texts[:WARM_UP_TEXTS], batch_size=batch_size, **options)
    serve_rounds(run)


if __name__ == "__main__":
    if "--side" in sys.argv:
        sys.exit(serve_side(sys.argv[1:]))
    stop_in_order()
    flags = {"--num-texts": {"type": int, "help": "default: 5,000, with --full 20,000"}}
    sys.exit(run_line(measure, name="gpu", about=__doc__, options=flags))
