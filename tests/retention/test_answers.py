"""What the api answers for what is over its time: 410, what it was, and when it went."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from ondol import Ondol
from ondol.client.errors import NoSuchThing
from tests.cluster import Cluster, running_cluster
from tests.retention.aged import ended_jobs, purge_all, sharded_job, uploaded
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

WHEN = r"on 20\d\d-\d\d-\d\d \d\d:\d\d UTC"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Cluster]:
    """An api over a SQLite database, without workers."""
    folder = tmp_path_factory.mktemp("answers")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis_server.url) as cluster:
        cluster.start_api()
        yield cluster


def test_parts_of_a_job_are_gone_and_the_job_is_still_there(cluster: Cluster) -> None:
    jobs = [*ended_jobs(cluster.database, 1, days_ago=31), sharded_job(cluster.database, 3, days_ago=31)]
    with httpx.Client(base_url=cluster.url) as client:
        for job in jobs:
            assert client.get(f"/v1/jobs/{job.id}/events").status_code == 200
        purge_all(cluster.database, results=30, events=30, inputs=30)
        for job in jobs:
            assert client.get(f"/v1/jobs/{job.id}").json()["status"] == "succeeded"
            for what, code in (("result", "results_gone"), ("result?partial=true", "results_gone")):
                check_gone(client.get(f"/v1/jobs/{job.id}/{what}"), code)
            for accept in ("application/json", "text/event-stream"):
                check_gone(client.get(f"/v1/jobs/{job.id}/events", headers={"accept": accept}), "events_gone")


def test_jobs_and_files_are_gone_and_say_so(cluster: Cluster) -> None:
    [job] = ended_jobs(cluster.database, 1, days_ago=91)
    file_id = uploaded(cluster.database, days_ago=91)
    purge_all(cluster.database, jobs=90, files=90)
    with httpx.Client(base_url=cluster.url) as client:
        for path in ("", "/result", "/events"):
            check_gone(client.get(f"/v1/jobs/{job.id}{path}"), "job_gone")
        for action in ("cancel", "retry"):
            check_gone(client.post(f"/v1/jobs/{job.id}/{action}"), "job_gone")
        check_gone(client.delete(f"/v1/jobs/{job.id}"), "job_gone")
        for path in ("", "/content"):
            check_gone(client.get(f"/v1/files/{file_id}{path}"), "file_gone")
        assert all(one["id"] != job.id for one in client.get("/v1/jobs").json()["data"])
    with Ondol(base_url=cluster.url) as client, pytest.raises(NoSuchThing, match=WHEN):
        client.jobs.get(job.id)


def check_gone(answer: httpx.Response, code: str) -> None:
    assert answer.status_code == 410, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert re.search(rf"(was|were) deleted {WHEN}.*ONDOL_KEEP_", error["message"]), error
