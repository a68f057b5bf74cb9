"""The client of the line `jobs`, in a process of its own: one-text durable jobs over HTTP, until all have ended.

Each request line on stdin is `{"port", "model", "num", "batch", "concurrency"}`: `batch` jobs a request (1: `POST
/v1/jobs`, else `/v1/jobs/batch`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

from bench.http_load import Answered, Connection, as_json, run_all
from bench.rounds import Figures, serve_rounds
from bench.stacks import stop_in_order

HOST = "127.0.0.1"
TEXT = "a warm floor"
LOOK_S = 0.02
"""Between two looks whether anything is left, once the last job has ended."""


def main() -> int:
    """Serve rounds."""
    stop_in_order()
    serve_rounds(lambda request: asyncio.run(_round(request)))
    return 0


async def _round(request: Figures) -> Figures:
    cpu_before, began = time.process_time(), time.time()
    began_wall = time.perf_counter()
    last = await _submit(request)
    accepted_s = time.perf_counter() - began_wall
    await _wait(request["port"], last)
    return {
        "began_at": began,
        "accepted_s": accepted_s,
        "wall_s": time.perf_counter() - began_wall,
        "client_cpu_s": time.process_time() - cpu_before,
    }


async def _submit(request: Figures) -> str:
    """Submit all; the id of the job that was accepted last."""
    job = {"kind": "embedding", "model": request["model"], "input": TEXT}
    batch = request["batch"]
    sizes = [batch] * (request["num"] // batch) + ([request["num"] % batch] if request["num"] % batch else [])
    single, path = batch == 1, "/v1/jobs" if batch == 1 else "/v1/jobs/batch"
    bodies = {size: as_json(job if single else {"jobs": [job] * size}) for size in set(sizes)}

    async def send(connection: Connection, size: int) -> Answered:
        return await connection.post(path, bodies[size])

    work = itertools.chain(sizes)
    answers = await run_all(HOST, request["port"], concurrency=request["concurrency"], work=work, send=send)
    parsed = json.loads(answers[-1].body)
    last = parsed if single else parsed["data"][-1]
    job_id: str = last["id"]  # KeyError: the item was refused, and the answer says why
    return job_id


async def _wait(port: int, last: str) -> None:
    """Until the job has ended and nothing is left that waits or runs."""
    connection = Connection(HOST, port)
    try:
        while not await _has_ended(connection, last):
            pass  # a long poll
        # No event would tell: what is waited for happens in other processes.
        while await _any(connection, "queued") or await _any(connection, "running"):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
    finally:
        await connection.close()


async def _has_ended(connection: Connection, job_id: str) -> bool:
    job: dict[str, Any] = json.loads((await connection.get(f"/v1/jobs/{job_id}?wait=30")).body)
    if job["status"] in ("failed", "cancelled"):
        raise RuntimeError(f"the benchmark's job {job['status']}: {job['error']}")
    return bool(job["status"] == "succeeded")


async def _any(connection: Connection, status: str) -> bool:
    return bool(json.loads((await connection.get(f"/v1/jobs?status={status}&limit=1")).body)["data"])


if __name__ == "__main__":
    sys.exit(main())
