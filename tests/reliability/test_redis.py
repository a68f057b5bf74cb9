"""Redis forgets, stands still, fills up or dies at the wrong moment: SQL has every job, and each runs once.

Scenarios 10-14, 19 and 20 of `docs/reliability.md`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from redis.exceptions import RedisError

from ondol.sql.records import NewJob
from ondol.sql.tables import jobs
from tests.job_fixtures import new_job, project_of
from tests.reliability.house import LIMIT_S, SLOW, House
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

NUM_QUEUED = 100
PAUSE_MS = 4_000
LONG_PAUSE_MS = 60_000
REQUEST_LIMIT_S = 3.0
"""What a client waits here for the answer to a submission; the pause is longer."""


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """No worker dies in this file: leases are long, so that none lapses while one stands still for the test."""
    return {"ONDOL_LEASE_S": "30", "ONDOL_RENEW_S": "2"}


@pytest.fixture(scope="module")
def house(sqlite_house: House) -> House:
    """Api, reconciler and one worker with a slow device."""
    sqlite_house.start_api()
    sqlite_house.start_reconciler()
    sqlite_house.start_worker(faults=SLOW)
    return sqlite_house


@pytest.fixture(autouse=True)
def _house_is_whole(house: House) -> Iterator[None]:
    """Every test finds Redis as it should be, with its canary, and nothing under way."""
    with house.redis.client() as client:
        wait_until(lambda: client.exists("ondol:canary"), within_s=LIMIT_S, what="the canary")
    yield
    house.thaw("worker0")
    wait_until(lambda: house.num_messages() == 0, within_s=LIMIT_S, what="no message to be out")


def _flush(redis: RedisServer) -> None:
    redis.flush()


def _kill_without_file(redis: RedisServer) -> None:
    with redis.client() as client:
        client.config_set("appendonly", "no")
        folder = Path(str(client.config_get("dir")["dir"]))
    redis.kill()
    for path in folder.iterdir():
        if path.name.endswith((".aof", ".rdb")):
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
    redis.start()


def _kill_with_file(redis: RedisServer) -> None:
    redis.kill()
    redis.start()


@pytest.mark.parametrize(
    ("lose", "repair"),
    [
        pytest.param(_kill_without_file, "redis_data_lost", id="10_killed_without_a_file"),
        pytest.param(_kill_with_file, None, id="11_killed_with_a_file"),
        pytest.param(_flush, "redis_data_lost", id="12_flushed"),
    ],
)
def test_what_redis_loses_is_rung_again_and_what_runs_is_left_alone(
    house: House, lose: Callable[[RedisServer], None], repair: str | None
) -> None:
    before, worker = house.repairs(), house.processes["worker0"]
    running = house.long_job()
    house.freeze("worker0")
    queued = house.submit_many(NUM_QUEUED)
    _wait_until_rung(house, queued)
    lose(house.redis)
    if repair is not None:
        wait_until(lambda: (house.repairs() - before)[repair] >= 1, within_s=LIMIT_S, what="the repair to be counted")
    house.thaw("worker0")
    house.ended(running)
    house.all_ended(queued)
    assert house.outcomes([running, *queued]) == Counter({(1, "succeeded"): NUM_QUEUED + 1})
    assert house.num_results([running, *queued]) == NUM_QUEUED + 1
    others = {"leader_lapsed"}  # of a reconciler that an earlier test killed
    assert set(house.repairs() - before) - others <= {"redis_data_lost", "message_lost"}
    assert worker.poll() is None, "the worker goes on without a restart"


@pytest.mark.parametrize("pause_ms", [PAUSE_MS, pytest.param(LONG_PAUSE_MS, marks=pytest.mark.long_chaos)])
def test_13_jobs_are_accepted_while_redis_stands_still(house: House, pause_ms: int) -> None:
    with house.redis.client() as client:
        client.execute_command("CLIENT", "PAUSE", pause_ms, "ALL")
    impatient = httpx.Client(base_url=house.url, timeout=REQUEST_LIMIT_S, trust_env=False)
    with impatient as http:
        bodies = [{"kind": "embedding", "model": "tiny", "input": f"while it stands still {i}"} for i in range(20)]
        answers = [http.post("/v1/jobs", json=body) for body in bodies]
        assert {answer.status_code for answer in answers} == {202}
        ids = [answer.json()["id"] for answer in answers]
        assert {http.get(f"/v1/jobs/{job_id}").json()["status"] for job_id in ids} == {"queued"}
        assert http.post(f"/v1/jobs/{ids[-1]}/cancel").json()["status"] == "cancelled"
    wait_until(lambda: _is_answering(house.redis), within_s=pause_ms / 1000 + LIMIT_S, what="Redis to go on")
    house.all_ended(ids[:-1])
    assert house.outcomes(ids) == Counter({(1, "succeeded"): 19})


def test_14_a_full_redis_refuses_no_job_and_drops_none(house: House) -> None:
    with _full(house.redis):
        ids = house.submit_many(20)
        call = house.http.post("/v1/embeddings", json={"model": "tiny", "input": "warm"})
        assert (call.status_code, call.json()["error"]["code"]) == (503, "broker_unavailable")
        assert int(call.headers["retry-after"]) >= 1
        job_id = house.submit("accepted while it is full")
        assert house.job(job_id)["status"] == "queued"
    house.all_ended([*ids, job_id])
    assert house.outcomes([*ids, job_id]) == Counter({(1, "succeeded"): 21})


def test_19_a_job_whose_api_died_between_commit_and_publish_runs_once(house: House) -> None:
    before = house.repairs()
    assert house.terminate("api") == 0
    house.start_program("dying", "tests.reliability.dying_process", "before-publish", "api.main")
    body = {"kind": "embedding", "model": "tiny", "input": "accepted by a dying api"}
    key = {"idempotency-key": "scenario-19"}
    wait_until(lambda: _is_up(house), within_s=LIMIT_S, what="the dying api to be ready")
    with suppress(httpx.TransportError):  # it may have died before it answered: then nobody knows
        house.http.post("/v1/jobs", json=body, headers=key)
    assert house.wait_for_end("dying") == -9
    house.restart("api")
    wait_until(lambda: _is_up(house), within_s=LIMIT_S, what="the api to be back")
    answer = house.http.post("/v1/jobs", json=body, headers=key)
    assert answer.headers["idempotent-replayed"]
    job_id = answer.json()["id"]
    house.ended(job_id)
    assert house.attempts_of(job_id) == [(1, "succeeded")]
    assert (house.repairs() - before)["message_lost"] == 1
    query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.id == job_id)
    assert house.count(query) == 1


def test_20_a_job_whose_ringer_died_behind_the_publish_runs_once(house: House) -> None:
    before = house.repairs()
    house.kill("reconciler")
    job = _unrung(house)
    house.database.write(lambda uow: uow.jobs.add_all([job]))
    house.start_program("dying", "tests.reliability.dying_process", "after-publish", "ondol.control.reconciler_main")
    assert house.wait_for_end("dying") == -9
    house.restart("reconciler")
    house.ended(job.id)
    assert house.attempts_of(job.id) == [(1, "succeeded")]
    assert (house.repairs() - before)["message_lost"] == 0, "the message had been published"


def _unrung(house: House) -> NewJob:
    """A job that nobody has rung: recorded without an api."""
    made = new_job(project_of(house.database), text="recorded without an api")
    template = house.submit("a template")
    house.ended(template)
    query = sa.select(jobs.c.version_id, jobs.c.options).where(jobs.c.id == template)
    row = house.database.read(lambda uow: uow.conn.execute(query).one())
    return replace(made, version_id=str(row.version_id), options=row.options)


def _wait_until_rung(house: House, ids: list[str]) -> None:
    query = sa.select(sa.func.count()).where(jobs.c.id.in_(ids), jobs.c.message_id.is_not(None))
    wait_until(lambda: house.count(query) == len(ids), within_s=LIMIT_S, what="all jobs to be rung")


def _is_answering(redis: RedisServer) -> bool:
    with redis.client() as client:
        try:
            return bool(client.ping())
        except (OSError, RedisError):
            return False


def _is_up(house: House) -> bool:
    try:
        return house.http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _full(redis: RedisServer) -> Iterator[None]:
    """Redis takes no more bytes inside the block."""
    with redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        try:
            yield
        finally:
            client.config_set("maxmemory", "0")
