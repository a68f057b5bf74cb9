"""A script that knows only Celery, against the real thing: an embedding, a classification and a fine-tune."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from ondol.sql.tables import jobs, results
from tests.cluster import running_cluster
from tests.producers.producer import running_producer
from tests.servers import RedisServer
from tests.training_jobs.client import rows_of_weather
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

LIMIT_S = 300
FAST = {"ONDOL_LEASE_S": "3", "ONDOL_RENEW_S": "0.5", "ONDOL_RUNG_UNCLAIMED_S": "2", "ONDOL_LOG_FORMAT": "json"}
SCRIPT = """
import json, sys
from celery import Celery

url, train_file = sys.argv[1:]
app = Celery(broker=url, backend=url)
tuning = {"train_file": train_file, "output_name": "weather", "hyperparameters": {"max_steps": 4}}
embedding = app.send_task("ondol.embedding", kwargs={"model": "tiny", "input": ["fire", "snow"]}, queue="ondol.jobs")
training = app.send_task("ondol.fine-tune", kwargs={"model": "tiny", "options": tuning})
vectors, trained = embedding.get(timeout=300), training.get(timeout=300)
fields = {"model": trained["model"], "input": "the stone of day 3", "options": {"top_k": 1}}
labels = app.send_task("ondol.text-classification", kwargs=fields).get(timeout=300)
try:
    import ondol
except ImportError:
    print(json.dumps({"vectors": vectors, "trained": trained, "labels": labels}))
"""


def test_a_plain_script_gets_one_result_each_though_the_worker_is_killed(
    tmp_path: Path, tiny_version: Path, empty_redis: RedisServer, producer_python: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'ondol.db'}"
    with running_cluster(tmp_path, database_url=url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.start_api()
        cluster.publish(tiny_version, "tiny")
        cluster.start_reconciler()
        worker = cluster.start_worker()
        cluster.start_trainer()
        cluster.start_intake()
        device = cluster.device_pid(worker)
        os.kill(device, signal.SIGSTOP)  # the worker claims, and waits for an answer that never comes
        files = {"file": ("train.csv", rows_of_weather(24).encode())}
        uploaded = httpx.post(f"{cluster.url}/v1/files", files=files, data={"purpose": "fine-tune"}, trust_env=False)
        (tmp_path / "shop.py").write_text(SCRIPT, encoding="utf-8")
        with subprocess.Popen(
            [str(producer_python), "shop.py", empty_redis.url, uploaded.json()["id"]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        ) as script:
            running = sa.select(jobs.c.id).where(jobs.c.kind == "embedding", jobs.c.state == "running")
            wait_until(
                lambda: cluster.database.read(lambda uow: uow.conn.execute(running).scalar()),
                within_s=LIMIT_S,
                what="the embedding to run",
            )
            cluster.kill(worker)
            with contextlib.suppress(ProcessLookupError):  # it may have ended with its worker
                os.kill(device, signal.SIGKILL)
            cluster.restart(worker)
            output, errors = script.communicate(timeout=LIMIT_S)
        assert script.returncode == 0, errors.decode()
        got = json.loads(output)
        counts = cluster.database.read(
            lambda uow: [
                uow.conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (jobs, results)
            ]
        )
        tries = sa.select(jobs.c.attempt).where(jobs.c.kind == "embedding")
        assert cluster.database.read(lambda uow: uow.conn.execute(tries).scalar_one()) == 2
        with running_producer(empty_redis.url) as producer:  # every node hears a revoke, and only the intake obeys
            heard = producer.app.control.revoke("somebody-elses", reply=True, timeout=LIMIT_S, limit=3)
        assert len(heard) == 3
        assert all("as revoked" not in cluster.log_of(name) for name in cluster.processes if name != "intake")
    assert counts == [3, 3]
    assert [len(item["output"]) for item in got["vectors"]["data"]] == [32, 32]
    assert got["trained"]["model"] == "weather:1"
    assert got["labels"]["data"][0]["output"][0]["label"] in ("warm", "cold", "wet")
