"""Who must be light is light: neither torch nor transformers outside the device process and the import child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from tests.embedding.conftest import Models
from tests.embedding.no_torch import LIGHT_PROGRAMS, Forbidden
from tests.served import Served
from workers.offline_models import E5, MINILM

pytestmark = pytest.mark.integration

API_LIMIT_MB = 200
IMPORT_LIMIT_S = 0.2
NOT_FOR_CLIENTS = {
    "torch",
    "transformers",
    "tokenizers",
    "sqlalchemy",
    "celery",
    "kombu",
    "redis",
    "fastapi",
    "alembic",
}


def libraries_of(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


def serve_something(served: Served) -> None:
    served.call_vectors(MINILM, ["a call"])
    served.embed(E5, ["a job", "온돌"])


def test_no_light_process_ever_tries_to_import_torch(served: Served, models: Models, forbidden: Forbidden) -> None:
    serve_something(served)
    assert forbidden.watched() == set(LIGHT_PROGRAMS)
    assert forbidden.tried() == {}


def test_torch_is_mapped_by_the_device_process_alone(served: Served, models: Models) -> None:
    serve_something(served)
    [device] = served.processes("workers.device")
    assert "libtorch_cpu" in libraries_of(device)
    for program in ("workers.main", "api.main", "ondol.control.reconciler_main"):
        for process in served.processes(program):
            assert "libtorch" not in libraries_of(process), program


def test_the_api_stays_small_and_holds_no_tokenizer(served: Served, models: Models) -> None:
    for model in models.folders:
        served.call_vectors(model, ["온돌"] * 50)
    [api] = served.processes("api.main")
    assert api.memory_info().rss / 2**20 <= API_LIMIT_MB
    assert "tokenizers" not in libraries_of(api)


def test_every_tokenizers_size_is_in_the_log(served: Served, models: Models) -> None:
    serve_something(served)
    events = served.log_events("worker-cpu0", "tokenizer.loaded")
    sizes = {event["ref"]: event["size_bytes"] for event in events}
    assert {f"{MINILM}:1", f"{E5}:1"} <= set(sizes)
    assert sizes[f"{E5}:1"] > sizes[f"{MINILM}:1"] > 0
    assert len(events) == len(sizes), "each is loaded once"


def test_every_command_that_is_sent_to_redis_is_one_of_6_2(served: Served, models: Models) -> None:
    serve_something(served)
    with redis.Redis.from_url((served.data_dir / "run" / "redis.url").read_text().strip()) as client:
        assert client.info("server")["redis_version"].startswith("6.2.")
        failed = {name for name, stats in client.info("commandstats").items() if stats["failed_calls"]}
    # The library greets newer servers by CLIENT SETINFO and does without; scripts are sent once, then named.
    assert failed <= {"cmdstat_client", "cmdstat_evalsha"}


def test_the_client_is_imported_in_a_moment() -> None:
    code = (
        "import sys, time; begun = time.process_time(); import ondol; "
        "print(time.process_time() - begun, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    # The best of a few: what the code costs, not what else the machine was doing.
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took, *names = done.stdout.split()
        assert not NOT_FOR_CLIENTS & set(names)
        seconds.append(float(took))
    assert min(seconds) < IMPORT_LIMIT_S
