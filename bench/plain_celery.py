"""Plain Celery as a peer of the line `jobs`: one task a text, a tiny model in the worker, results in Redis.

`python -m bench.plain_celery worker …` is the worker, `… client` the client (`bench.rounds`).
It is set up as well as we know: JSON, early acknowledgement, prefetching, no events, no gossip, one model a process.
"""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery

from bench.job_client import TEXT
from bench.rounds import Figures, serve_rounds
from bench.stacks import stop_in_order

if TYPE_CHECKING:
    from collections.abc import Callable

REDIS, FOLDER = "BENCH_CELERY_REDIS", "BENCH_CELERY_MODEL"
PREFETCH = 64
RESULT_LIMIT_S = 600


def make_app() -> Celery:
    """The application; its Redis and model folder come by the environment, from the line that starts it."""
    app = Celery("plain", broker=os.environ[REDIS], backend=os.environ[REDIS])
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=PREFETCH,
        worker_send_task_events=False,
        task_send_sent_event=False,
        broker_connection_retry_on_startup=True,
        result_expires=3_600,
    )

    @app.task(name="plain.embed")  # type: ignore[untyped-decorator]  # Celery has no types
    def embed(text: str) -> list[float]:
        return _model(os.environ[FOLDER])(text)

    return app


@cache
def _model(folder: str) -> Callable[[str], list[float]]:
    """Text to a unit vector, mean of the last hidden states, by transformers itself; loaded once a process."""
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModel.from_pretrained(Path(folder)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder))

    @torch.inference_mode()
    def run(text: str) -> list[float]:
        inputs = tokenizer(text, return_tensors="pt", truncation=True)
        vector = model(**inputs).last_hidden_state[0].mean(dim=0)
        found: list[float] = torch.nn.functional.normalize(vector, dim=0).tolist()
        return found

    return run


def _client_round(app: Celery, request: Figures) -> Figures:
    cpu_before, began = time.process_time(), time.perf_counter()
    task: Any = app.tasks["plain.embed"]
    with app.pool.acquire(block=True) as connection, app.amqp.Producer(connection) as producer:
        results = [task.apply_async((TEXT,), producer=producer) for _ in range(request["num"])]
        accepted_s = time.perf_counter() - began
    for result in results:
        assert len(result.get(timeout=RESULT_LIMIT_S)) > 0
    wall_s = time.perf_counter() - began
    return {"wall_s": wall_s, "accepted_s": accepted_s, "client_cpu_s": time.process_time() - cpu_before}


def main(argv: list[str]) -> int:
    """Be the worker or the client."""
    app = make_app()
    if argv[0] == "worker":
        app.worker_main(argv)
        return 0
    stop_in_order()
    serve_rounds(lambda request: _client_round(app, request))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
