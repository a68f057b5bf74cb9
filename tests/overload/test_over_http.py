"""Refusals as clients see them: a time to come back that the SDK keeps to, or a size that never fits."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa

from ondol.client.records import JobRequest
from ondol.client.sync_client import Ondol
from ondol.contract.states import JobState
from ondol.sql.tables import jobs
from ondol.sql.unit_of_work import UnitOfWork
from tests.http.api_process import MODEL, ApiProcess, Member, job_body
from tests.http.shared_api import api_fixture
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MAX_JOBS = 20
MAX_TOKENS = 2_000
JOBS_PER_S = 10.0


api = api_fixture(max_queued_jobs=MAX_JOBS, max_queued_tokens=MAX_TOKENS)


@pytest.fixture
def member(api: ApiProcess) -> Iterator[Member]:
    """Somebody who finds the queue empty."""
    made = api.member()
    api.database.write(lambda uow: uow.conn.execute(sa.update(jobs).values(state=JobState.CANCELLED)))
    yield made
    made.close()


class Drain:
    """Ends the oldest queued job ten times a second, for a `with` statement."""

    def __init__(self, api: ApiProcess) -> None:
        self._api = api
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Drain:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(1 / JOBS_PER_S):
            self._api.database.write(_end_oldest)


def _end_oldest(uow: UnitOfWork) -> None:
    oldest = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED).order_by(jobs.c.id).limit(1)
    done = {"state": JobState.SUCCEEDED, "finished_at": uow.now}
    uow.conn.execute(sa.update(jobs).where(jobs.c.id == oldest.scalar_subquery()).values(**done))


def _num_refused(api: ApiProcess) -> float:
    text = httpx.get(f"{api.url}/metrics").text
    found = re.search(r'^ondol_jobs_refused_total\{code="overloaded"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_sdk_comes_back_when_it_was_told_to(api: ApiProcess, member: Member) -> None:
    full = {"jobs": [job_body()] * MAX_JOBS}
    wait_until(
        lambda: member.http.post("/v1/jobs/batch", json=full).status_code == 200,
        within_s=10,
        what="the queue to be full",
    )

    def is_told_seconds() -> bool:
        answer = member.http.post("/v1/jobs/batch", json=full)
        return answer.status_code == 429 and int(answer.headers["retry-after"]) <= 4

    with Drain(api), Ondol(api.url, api_key=member.secret) as client:
        wait_until(is_told_seconds, within_s=15, what="the rate to be known")
        told = member.http.post("/v1/jobs/batch", json=full).headers
        milliseconds, seconds = int(told["retry-after-ms"]), int(told["retry-after"])
        assert max(250, 1_000 * (seconds - 1)) <= milliseconds <= 1_100 * seconds + 251, "the same, but for a spread"
        before = _num_refused(api)
        for _ in range(2):  # the second needs the first to have left
            client.jobs.create_many([JobRequest(kind="embedding", input=["one more"], model=MODEL)] * MAX_JOBS)
    num_asked_in_vain = (_num_refused(api) - before) / MAX_JOBS
    assert 1 <= num_asked_in_vain <= 6, "told, and not asked again and again"


def test_a_job_that_never_fits_is_not_told_to_come_back(member: Member) -> None:
    too_large = job_body(input=["a word and another " * 4] * 200)
    answer = member.http.post("/v1/jobs", json=too_large)
    assert answer.status_code == 413 and "retry-after" not in answer.headers
    error = answer.json()["error"]
    assert error["code"] == "payload_too_large" and error["param"] == "input"
    assert str(MAX_TOKENS) in error["message"] and "ONDOL_MAX_QUEUED_TOKENS" in error["message"]
    both = member.http.post("/v1/jobs/batch", json={"jobs": [too_large, job_body()]}).json()["data"]
    assert both[0]["error"]["code"] == "payload_too_large" and both[1]["status"] == "queued"
    many = member.http.post("/v1/jobs/batch", json={"jobs": [job_body()] * (MAX_JOBS + 1)})
    assert many.status_code == 413 and "ONDOL_MAX_QUEUED_JOBS" in many.json()["error"]["message"]


def test_an_accepted_job_is_told_its_place(member: Member) -> None:
    first = member.submit()
    assert first["queue"].keys() == {"position", "estimated_start"}
    second = member.submit()
    assert second["queue"]["position"] > 1
    assert member.http.get(f"/v1/jobs/{second['id']}").json()["queue"]["position"] >= 2
