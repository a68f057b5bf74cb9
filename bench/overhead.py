"""What the system costs on top of the engine: CPU seconds of the bulk path, latency of a call, jobs a second, memory.

`python -m bench.overhead [--rounds 3] [--dtype float32]`: system and bare loop take turns in one run; medians and
ratios are printed and written to `bench/results/overhead.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.bare_loop import LATENCY_TEXT
from bench.corpus import docstring_texts
from ondol.demo.stack import Stack
from tests.tiny_models import make_tiny_model

RESULTS = Path(__file__).parent / "results"
MODEL = "all-minilm-l6-v2"
TINY = "tiny"
IDLE_S = 10.0
Figures = dict[str, Any]


def main(argv: list[str]) -> int:
    """Run all parts and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num-texts", type=int, default=4_000)
    parser.add_argument("--num-calls", type=int, default=200)
    parser.add_argument("--num-jobs", type=int, default=5_000)
    parsed = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="ondol-bench-") as folder:
        settings = {"ONDOL_DEVICES": "cpu:1x1", "ONDOL_DTYPE": parsed.dtype, "ONDOL_LOG_LEVEL": "warning"}
        with Stack(Path(folder) / "data", settings) as stack:
            figures = _measure(stack, parsed)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:32} {value}")
    return 0


def _measure(stack: Stack, parsed: argparse.Namespace) -> Figures:
    texts = docstring_texts(parsed.num_texts)
    version = next((stack.data_dir / "cache").glob("[0-9a-f]*"), None)
    with httpx.Client(base_url=stack.url, timeout=300) as client:
        _embed_job(client, texts[:64])
        version = version or next((stack.data_dir / "cache").glob("[0-9a-f]*"))
        figures: Figures = {"dtype": parsed.dtype, "num_texts": len(texts), "rounds": parsed.rounds}
        figures |= _idle(stack)
        bulk, bare, calls, bare_calls = [], [], [], []
        for _ in range(parsed.rounds):
            bare.append(_bare(version, parsed))
            bare_calls.append(bare[-1]["call_ms"])
            bulk.append(_bulk(stack, client, texts))
            calls.append(statistics.median(_call_ms(client, parsed.num_calls)))
        figures |= _summary(bulk, bare, calls, bare_calls)
        _import_tiny(client, stack.data_dir)
        _jobs(client, 1_000)
        figures |= _jobs(client, parsed.num_jobs)
        figures |= _memory(stack)
    return figures


def _summary(bulk: list[Figures], bare: list[Figures], calls: list[float], bare_calls: list[float]) -> Figures:
    pairs = list(zip(bulk, bare, strict=True))
    return {
        "bulk_cpu_s": statistics.median(b["cpu_s"] for b in bulk),
        "bare_cpu_s": statistics.median(b["cpu_s"] for b in bare),
        "bulk_cpu_ratio": statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in pairs),
        "bulk_wall_s": statistics.median(b["wall_s"] for b in bulk),
        "bare_wall_s": statistics.median(b["wall_s"] for b in bare),
        "bulk_cpu_by_process_s": bulk[-1]["by_process"],
        "call_p50_ms": statistics.median(calls),
        "bare_forward_p50_ms": statistics.median(bare_calls),
        "call_above_forward_ms": statistics.median(c - b for c, b in zip(calls, bare_calls, strict=True)),
    }


def _bare(version: Path, parsed: argparse.Namespace) -> Figures:
    command = [sys.executable, "-m", "bench.bare_loop", "--folder", str(version), "--dtype", parsed.dtype]
    command += ["--num-texts", str(parsed.num_texts), "--num-calls", str(parsed.num_calls)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _bulk(stack: Stack, client: httpx.Client, texts: list[str]) -> Figures:
    before, started = _cpu_by_process(stack), time.perf_counter()
    _embed_job(client, texts)
    wall_s = time.perf_counter() - started
    spent = {name: round(cpu - before.get(name, 0.0), 2) for name, cpu in _cpu_by_process(stack).items()}
    return {"cpu_s": sum(spent.values()), "wall_s": wall_s, "by_process": spent}


def _embed_job(client: httpx.Client, texts: list[str]) -> None:
    body = {"kind": "embedding", "model": MODEL, "input": texts}
    job = client.post("/v1/jobs", json=body).raise_for_status().json()
    _wait(client, job["id"])
    result = client.get(f"/v1/jobs/{job['id']}/result", headers={"Accept": "application/x-npy"}).raise_for_status()
    assert len(result.content) > len(texts) * 384 * 4


def _call_ms(client: httpx.Client, num: int) -> list[float]:
    body = {"model": MODEL, "input": LATENCY_TEXT, "encoding_format": "base64"}
    times = []
    for _ in range(num):
        started = time.perf_counter()
        client.post("/v1/embeddings", json=body).raise_for_status()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def _import_tiny(client: httpx.Client, folder: Path) -> None:
    source = make_tiny_model(folder / "tiny-source")
    job = client.post(
        "/v1/jobs", json={"kind": "import", "input": {"path": str(source)}, "options": {"name": TINY}}
    ).raise_for_status()
    _wait(client, job.json()["id"])


def _wait(client: httpx.Client, job_id: str) -> None:
    job: Figures = {"status": "queued"}
    while job["status"] not in ("succeeded", "failed"):
        job = client.get(f"/v1/jobs/{job_id}?wait=30").raise_for_status().json()
    if job["status"] != "succeeded":
        raise RuntimeError(f"the benchmark's job failed: {job['error']}")


def _jobs(client: httpx.Client, num: int) -> Figures:
    """One-text jobs of a tiny random model through `/v1/jobs/batch` until the last one has ended."""
    texts = ["a warm floor"] * 1_000
    started = time.perf_counter()
    last = ""
    for _ in range(num // 1_000):
        body = {"jobs": [{"kind": "embedding", "model": TINY, "input": text} for text in texts]}
        last = client.post("/v1/jobs/batch", json=body).raise_for_status().json()["data"][-1]["id"]
    accepted_s = time.perf_counter() - started
    _wait(client, last)
    return {
        "one_text_jobs_accepted_per_s": round(num / accepted_s),
        "one_text_jobs_done_per_s": round(num / (time.perf_counter() - started)),
    }


def _idle(stack: Stack) -> Figures:
    before = sum(_cpu_by_process(stack).values())
    psutil.cpu_percent()
    _pause(IDLE_S)
    spent = sum(_cpu_by_process(stack).values()) - before
    return {"idle_percent_of_a_core": round(100 * spent / IDLE_S, 2)}


def _pause(seconds: float) -> None:
    time.sleep(seconds)  # the interval over which idleness is measured


def _memory(stack: Stack) -> Figures:
    return {"rss_mb": {name: round(process.memory_info().rss / 1024**2) for name, process in _processes(stack)}}


def _cpu_by_process(stack: Stack) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, process in _processes(stack):
        times = process.cpu_times()
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def _processes(stack: Stack) -> list[tuple[str, psutil.Process]]:
    """Every process of the stack with a short name: api.main, workers.main, workers.device, redis-server, …"""
    root = psutil.Process(stack.pid)
    found = []
    for process in [root, *root.children(recursive=True)]:
        line = process.cmdline()
        name = line[line.index("-m") + 1] if "-m" in line else Path(line[0]).name if line else process.name()
        found.append((name, process))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
