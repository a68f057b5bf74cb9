"""The client of the line `calls`, in a process of its own and the same for every server: single-text embedding calls.

Each request line on stdin is `{"host", "port", "path", "model", "concurrency", "num", "texts"}`; the answer has the
seconds of all, of each call, and the CPU seconds of this process.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

from bench.bare_loop import LATENCY_TEXT
from bench.corpus import docstring_texts
from bench.http_load import Answered, Connection, as_json, run_all
from bench.report import percentile
from bench.rounds import Figures, serve_rounds
from bench.stacks import stop_in_order

MAX_CHARS = 400
NUM_TEXTS = 2_000


def main() -> int:
    """Serve rounds."""
    stop_in_order()
    texts = [text for text in docstring_texts(NUM_TEXTS) if len(text) <= MAX_CHARS]
    serve_rounds(lambda request: _round(request, texts))
    return 0


def _round(request: Figures, texts: list[str]) -> Figures:
    chosen = texts if request["texts"] == "mixed" else [LATENCY_TEXT]
    bodies = [as_json({"model": request["model"], "input": t, "encoding_format": "base64"}) for t in chosen]
    work = itertools.islice(itertools.cycle(bodies), request["num"])

    async def send(connection: Connection, body: bytes) -> Answered:
        return await connection.post(request["path"], body)

    cpu_before, began = time.process_time(), time.perf_counter()
    answers = asyncio.run(
        run_all(request["host"], request["port"], concurrency=request["concurrency"], work=work, send=send)
    )
    wall_s = time.perf_counter() - began
    milliseconds = [answer.seconds * 1e3 for answer in answers]
    return {
        "wall_s": wall_s,
        "client_cpu_s": time.process_time() - cpu_before,
        "num": len(answers),
        "p50_ms": percentile(milliseconds, 50),
        "p99_ms": percentile(milliseconds, 99),
    }


if __name__ == "__main__":
    sys.exit(main())
