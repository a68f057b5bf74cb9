"""The process: light, ready when its parts are, refusing when the queue is full, gone in good order."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.http.api_process import ROOT, Member, job_body
from tests.http.conftest import StartApi
from tests.http.peer_worker import PeerWorker
from tests.http.test_bad_input import assert_refused
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MAX_RSS_MB = 200
_HEAVY = "torch transformers sentence_transformers workers tokenizers"


def test_the_api_imports_no_model_library_and_no_worker() -> None:
    code = f"import sys, api.main; print([n for n in {_HEAVY.split()!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_api_stays_small(member: Member, worker: PeerWorker) -> None:
    for i in range(200):
        member.submit(input=f"text {i}")
        member.http.post("/v1/embeddings", json={"model": "tiny", "input": ["a"] * 50})
    assert psutil.Process(member.api.pid).memory_info().rss / 2**20 < MAX_RSS_MB


def test_ready_means_that_every_part_answers(start_api: StartApi, sqlite_url: str, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    (tmp_path / "redis").mkdir()
    server.start()
    api = start_api(sqlite_url, redis_url=server.url)
    assert httpx.get(f"{api.url}/readyz").json() == {
        "status": "ready",
        "checks": {"database": {"ok": True, "reason": None}, "redis": {"ok": True, "reason": None}},
    }
    server.stop()
    answer = httpx.get(f"{api.url}/readyz")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    checks = answer.json()["checks"]
    assert checks["database"]["ok"] and not checks["redis"]["ok"] and checks["redis"]["reason"]
    assert httpx.get(f"{api.url}/livez").status_code == 200
    member = api.member()
    assert member.submit()["status"] == "queued"  # SQL is the truth: a job is accepted without the bell
    server.start()
    wait_until(lambda: httpx.get(f"{api.url}/readyz").status_code == 200, within_s=10, what="the api to be ready again")
    member.close()
    api.stop()
    server.stop()


def test_an_old_schema_is_not_ready(start_api: StartApi, sqlite_url: str) -> None:
    api = start_api(sqlite_url)
    api.stop()
    api.database.write(lambda uow: uow.conn.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'"))
    api.start(until_ready=False)
    answer = httpx.get(f"{api.url}/readyz")
    assert answer.status_code == 503 and "ondol db upgrade" in answer.json()["checks"]["database"]["reason"]


def test_a_full_queue_refuses_with_a_time_to_come_back(start_api: StartApi, database_url: str) -> None:
    member = start_api(database_url, max_queued_jobs="10").member()
    accepted = member.http.post("/v1/jobs/batch", json={"jobs": [job_body()] * 10})
    assert accepted.status_code == 200
    first = member.http.get(f"/v1/jobs/{accepted.json()['data'][0]['id']}").json()
    assert first["queue"] == {"position": 1, "estimated_start": None}, "no job has ended yet: nobody knows how fast"
    answer = member.http.post("/v1/jobs", json=job_body())
    assert_refused(answer, 429, None)
    assert answer.json()["error"]["code"] == "overloaded" and 1 <= int(answer.headers["retry-after"]) <= 67  # spread
    member.http.post(f"/v1/jobs/{accepted.json()['data'][0]['id']}/cancel")
    wait_until(
        lambda: member.http.post("/v1/jobs", json=job_body()).status_code == 202,
        within_s=10,
        what="a job to be accepted after one was cancelled",
    )
    member.close()


def test_a_stop_lets_running_requests_end_and_exits_0(
    start_api: StartApi, sqlite_url: str, redis_server: RedisServer
) -> None:
    api = start_api(sqlite_url)
    member = api.member()
    job_id = member.submit()["id"]
    answers: list[httpx.Response] = []
    headers = {"accept": "text/event-stream"}
    requests = [
        threading.Thread(target=lambda: answers.append(member.http.get(f"/v1/jobs/{job_id}?wait=60", timeout=60))),
        threading.Thread(target=lambda: answers.append(member.http.get(f"/v1/jobs/{job_id}/events", headers=headers))),
    ]
    for request in requests:
        request.start()
    connections = psutil.Process(api.pid)
    wait_until(
        lambda: sum(c.status == "ESTABLISHED" and c.laddr.port == api.port for c in connections.net_connections()) >= 2,
        within_s=10,
        what="both requests to arrive",
    )
    begun = time.monotonic()
    assert api.stop() == 0
    assert time.monotonic() - begun < 5  # long answers end when the process is told to stop
    for request in requests:
        request.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert redis_server.keys_without_expiry() == [] or all(
        "repl" not in key for key in redis_server.keys_without_expiry()
    )
    member.close()


def test_logs_hold_neither_texts_nor_keys(start_api: StartApi, sqlite_url: str) -> None:
    api = start_api(sqlite_url, log_level="debug")
    member = api.member()
    member.submit(input="a very secret text")
    member.http.post("/v1/jobs", json=job_body(input=["another secret text", 5]))
    api.database.write(lambda uow: uow.conn.exec_driver_sql("DROP TABLE idempotency_keys"))
    answer = member.http.post("/v1/jobs", json=job_body(input="third secret text"), headers={"idempotency-key": "k"})
    assert answer.status_code in (500, 503)
    api.stop()
    assert "secret text" not in api.logs() and member.secret not in api.logs()
    member.close()


def test_a_failure_inside_is_answered_in_shape(start_api: StartApi, sqlite_url: str) -> None:
    api = start_api(sqlite_url)
    member = api.member()
    member.submit()
    api.database.write(lambda uow: uow.conn.exec_driver_sql("UPDATE jobs SET kind = 'unheard-of'"))
    answer = member.http.get("/v1/jobs")
    assert_refused(answer, 500, None)
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-request-id"] in api.logs()
    member.close()


def test_a_request_id_is_kept(member: Member) -> None:
    assert member.http.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert member.http.get("/livez", headers={"x-request-id": "not mine!"}).headers["x-request-id"].startswith("req_")
