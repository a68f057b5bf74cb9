"""A job from its submission to its end, as seen through `/v1/jobs`, on both databases."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from ondol.sql.records import Failure
from tests.http.api_process import ApiProcess, Member, job_body
from tests.http.peer_worker import TIMINGS, PeerWorker
from tests.http.test_bad_input import assert_refused
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture
def api(each_api: ApiProcess) -> ApiProcess:
    return each_api


@pytest.fixture
def someone(member_of_each: Member) -> Member:
    return member_of_each


def test_a_job_is_accepted_waited_for_and_described(
    api: ApiProcess, someone: Member, redis_server: RedisServer
) -> None:
    job = someone.submit(input=["a b", "c"], metadata={"mine": 1}, priority="interactive")
    assert (job["status"], job["model"], job["progress"]) == (
        "queued",
        "tiny:1",
        {"done": 0, "total": 2, "unit": "inputs"},
    )
    seen = someone.http.get(f"/v1/jobs/{job['id']}").json()
    for queue in (job.pop("queue"), seen.pop("queue")):  # how fast jobs end, and who else waits, is of other tests
        assert queue["position"] >= 1
        assert queue["estimated_start"] is None or queue["estimated_start"] >= job["created_at"]
    assert seen == job

    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(someone.http.get(f"/v1/jobs/{job['id']}?wait=25")))
    waiting.start()
    peer = PeerWorker(api.database, redis_server.url, "peer@two")
    someone.submit(input="rings the first one too", priority="bulk")
    claimed = peer.claim_next()
    assert [c.id for c in claimed] == [job["id"]]
    begun = time.monotonic()
    peer.complete(claimed)
    waiting.join()
    assert time.monotonic() - begun < 1.5  # woken, not polled: the poll comes every two seconds
    done = answers[0].json()
    assert (done["status"], done["attempt"], done["worker"], done["error"]) == ("succeeded", 1, "peer@two", None)
    assert done["timings"] == TIMINGS and done["usage"] == {"tokens": 7}
    assert done["result_url"] == f"/v1/jobs/{job['id']}/result" and done["metadata"] == {"mine": 1}
    peer.close()


def test_a_long_poll_of_a_job_that_goes_on_answers_in_time(someone: Member) -> None:
    job = someone.submit()
    begun = time.monotonic()
    assert someone.http.get(f"/v1/jobs/{job['id']}?wait=0.5").json()["status"] == "queued"
    assert 0.4 < time.monotonic() - begun < 5


def test_lists_go_by_pages_and_filters(someone: Member) -> None:
    ids = [someone.submit(input=f"text {i}")["id"] for i in range(5)]
    someone.http.post(f"/v1/jobs/{ids[0]}/cancel")
    first = someone.http.get("/v1/jobs?limit=3").json()
    rest = someone.http.get(f"/v1/jobs?limit=3&after={first['data'][-1]['id']}").json()
    assert [job["id"] for job in first["data"] + rest["data"]] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    for query, expected in (
        ("status=cancelled", 1),
        ("kind=embedding", 5),
        ("kind=import", 0),
        ("model=tiny", 5),
        ("model=tiny@default", 5),
        ("model=tiny:2", 0),
        ("created_after=9999999999", 0),
    ):
        assert len(someone.http.get(f"/v1/jobs?{query}").json()["data"]) == expected, query


def test_cancel_is_a_state_at_once_and_happens_once(someone: Member) -> None:
    job = someone.submit()
    first, again = (someone.http.post(f"/v1/jobs/{job['id']}/cancel").json() for _ in range(2))
    assert first["status"] == "cancelled" and first == again
    events = someone.http.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    assert [event["data"]["to"] for event in events] == ["queued", "cancelled"]
    refused = someone.http.post(f"/v1/jobs/{job['id']}/retry")
    assert_refused(refused, 409, None)
    assert refused.headers["x-should-retry"] == "false"


def test_a_failed_job_has_no_result_until_it_is_retried(
    api: ApiProcess, someone: Member, redis_server: RedisServer
) -> None:
    peer = PeerWorker(api.database, redis_server.url, "peer@three")
    job = someone.submit()
    error = {"code": "device_error", "message": "it broke", "param": None}
    [claimed] = peer.claim_next()
    api.database.write(lambda uow: uow.attempts.fail([Failure(claimed.id, claimed.attempt, error)], max_retries=0))
    assert someone.http.get(f"/v1/jobs/{job['id']}").json()["error"] == error
    refused = someone.http.get(f"/v1/jobs/{job['id']}/result")
    assert_refused(refused, 409, None)
    assert refused.headers["x-should-retry"] == "false"
    assert someone.http.post(f"/v1/jobs/{job['id']}/retry").json()["status"] == "queued"
    peer.run_one_message()
    assert someone.http.get(f"/v1/jobs/{job['id']}/result").status_code == 200
    peer.close()


def test_delete_means_it(api: ApiProcess, someone: Member) -> None:
    job = someone.submit()
    assert_refused(someone.http.delete(f"/v1/jobs/{job['id']}"), 409, None)
    someone.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert someone.http.delete(f"/v1/jobs/{job['id']}").json() == {
        "object": "job.deleted",
        "id": job["id"],
        "deleted": True,
    }
    assert someone.count_rows() == 0
    for path in ("", "/result", "/events"):
        assert_refused(someone.http.get(f"/v1/jobs/{job['id']}{path}"), 404, "id")


def test_nobody_sees_another_projects_things(api: ApiProcess, someone: Member) -> None:
    job = someone.submit()
    other = api.member(with_model=False)
    for method, path in (
        ("GET", ""),
        ("GET", "?wait=5"),
        ("GET", "/result"),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("DELETE", ""),
    ):
        assert_refused(other.http.request(method, f"/v1/jobs/{job['id']}{path}"), 404, "id")
    stream = other.http.get(f"/v1/jobs/{job['id']}/events", headers={"accept": "text/event-stream"})
    assert_refused(stream, 404, "id")
    assert other.http.get("/v1/jobs").json()["data"] == []
    assert other.http.get("/v1/models").json()["data"] == []
    assert_refused(other.http.post("/v1/jobs", json=job_body()), 404, "model")
    other.close()


def test_the_model_is_frozen_when_the_job_is_accepted(api: ApiProcess, someone: Member) -> None:
    first = someone.submit(model="tiny@default")
    api.publish(someone.project_id)
    assert someone.submit(model="tiny:2")["model"] == "tiny:2"
    assert someone.http.get(f"/v1/jobs/{first['id']}").json()["model"] == "tiny:1"


def test_a_thousand_jobs_are_one_batch(someone: Member) -> None:
    answer = someone.http.post("/v1/jobs/batch", json={"jobs": [job_body(input=f"text {i}") for i in range(1000)]})
    ids = [job["id"] for job in answer.json()["data"]]
    assert len(set(ids)) == 1000 and ids == sorted(ids)
    assert someone.count_rows() == 2000
