"""The programs in `examples/` do what their first lines say, as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ondol import Ondol
from ondol.contract.webhook_signature import sign
from ondol.control.host import free_port
from tests.cluster import REPOSITORY, Cluster
from tests.servers import RedisServer
from tests.training_jobs.client import rows_of_weather
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

EXAMPLES = REPOSITORY / "examples"
LIMIT_S = 180


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONDOL_")}
    return kept | {"PYTHONPATH": str(REPOSITORY)} | variables


def run(command: list[str], variables: Mapping[str, str], *, cwd: Path) -> str:
    done = subprocess.run(
        command, env=dict(variables), cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("cluster")
def test_a_celery_application_gets_vectors(
    redis_of_the_examples: RedisServer, producer_python: Path, tmp_path: Path
) -> None:
    variables = {"ONDOL_BROKER": redis_of_the_examples.url, "PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"}
    texts = ["the kettle is warm", "온돌은 따뜻하다"]
    printed = run([str(producer_python), str(EXAMPLES / "celery_producer.py"), *texts], variables, cwd=tmp_path)
    assert printed.splitlines() == [f"32 dimensions for {text!r}" for text in texts]


def test_the_nightly_training_promotes_a_better_version_only(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(rows_of_weather(24), encoding="utf-8")
    (tmp_path / "test.csv").write_text(rows_of_weather(9), encoding="utf-8")
    script = [sys.executable, str(EXAMPLES / "nightly_fine_tune.py"), "weather", "train.csv", "test.csv"]
    variables = environment(ONDOL_URL=cluster.url)

    def production() -> str:
        found = httpx.get(f"{cluster.url}/v1/models/weather@production", trust_env=False).raise_for_status()
        version: str = found.json()["version"]
        return version

    first = run([*script, "--epochs", "0.5"], variables, cwd=tmp_path)
    assert first.startswith("weather:1: ")
    assert first.endswith("in production: 0.000; promoted\n")
    assert production() == "weather:1"
    # The same once more is as good, and that is not better.
    second = run([*script, "--epochs", "0.5"], variables, cwd=tmp_path)
    assert second.startswith("weather:2: ")
    assert second.endswith("; stays as it is\n")
    assert production() == "weather:1"


def webhook_secret(url: str) -> str:
    secret: str = httpx.get(f"{url}/v1/webhooks/secret", trust_env=False).raise_for_status().json()["secret"]
    return secret


@contextmanager
def running_application(url: str, log: Path, *, hook: str | None = None) -> Iterator[str]:
    """The address of `examples/fastapi_app.py` under uvicorn; `hook`: what it has Ondol call instead of itself."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    secret = webhook_secret(url)
    variables = environment(ONDOL_URL=url, HOOK_URL=hook or f"{address}/hooks/ondol", ONDOL_WEBHOOK_SECRET=secret)
    command = [sys.executable, "-m", "uvicorn", "examples.fastapi_app:app", "--port", str(port)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=output, stderr=output) as process,
    ):
        try:
            wait_until(
                lambda: b"startup complete" in log.read_bytes() or process.poll() is not None,
                within_s=LIMIT_S,
                what="the application to start",
            )
            assert process.poll() is None, log.read_text()
            yield address
        finally:
            process.terminate()


def test_a_web_application_is_told_of_its_vectors_and_searches(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "uvicorn.log"
    documents = ["the kettle is warm", "snow on the roof", "a cat"]
    with running_application(cluster.url, log) as address, httpx.Client(base_url=address, trust_env=False) as http:

        def search() -> list[dict[str, object]]:
            answer = http.get("/search", params={"q": documents[1]}, timeout=LIMIT_S)
            assert answer.status_code == 200, log.read_text()
            found: list[dict[str, object]] = answer.json()
            return found

        assert search() == []
        assert http.post("/documents", json=documents).status_code == 202
        found = wait_until(search, within_s=LIMIT_S, what="the documents to be found")
        assert found[0]["text"] == documents[1]
        assert found[0]["score"] == pytest.approx(1, abs=1e-4)
        assert len(found) == 3
        forged = http.post("/hooks/ondol", json={"type": "job.succeeded"})
        assert forged.status_code == 400


def test_a_document_that_fails_keeps_no_other_one_from_being_found(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "uvicorn.log"
    documents = ["the kettle is warm", "snow " * 2_000, "a cat"]
    nobody = f"http://127.0.0.1:{free_port()}/hooks/ondol"  # so that the event below is the first that it hears of
    with (
        running_application(cluster.url, log, hook=nobody) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=LIMIT_S) as http,
        Ondol(cluster.url) as ondol,
    ):
        batch = ondol.jobs.get(http.post("/documents", json=documents).json()["job"]).metadata["batch"]
        job = ondol.jobs.create(
            "embedding",
            model="all-minilm-l6-v2",
            input=documents,
            options={"truncate": "error"},
            metadata={"batch": batch},
        ).wait(timeout_s=LIMIT_S)
        body = json.dumps({"id": "ntc_1", "type": "job.succeeded", "data": job.raw}).encode()
        headers = sign(webhook_secret(cluster.url), "ntc_1", int(time.time()), body)
        told = http.post("/hooks/ondol", content=body, headers=headers)
        assert told.status_code == 200, log.read_text()
        found = http.get("/search", params={"q": documents[2]}).json()
        assert [one["text"] for one in found] == ["a cat", "the kettle is warm"]


def test_documents_that_are_refused_are_not_waited_for(cluster: Cluster) -> None:
    program = (
        "import asyncio, examples.fastapi_app as example, ondol\n"
        "async def add():\n"
        "    async with example.lifespan(example.app):\n"
        "        try: await example.add([])\n"
        "        except ondol.OndolError as error: print(error.code, len(example.waiting))\n"
        "asyncio.run(add())\n"
    )
    variables = environment(ONDOL_URL=cluster.url)
    printed = run([sys.executable, "-c", program], variables, cwd=REPOSITORY)
    assert printed.split()[1] == "0"
