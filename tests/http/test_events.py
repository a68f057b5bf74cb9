"""Events: a list, or a stream that resumes without a gap or a repeat, over connections and restarts of the api."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.http.api_process import Member
from tests.http.conftest import StartApi
from tests.http.peer_worker import PeerWorker
from tests.http.test_bad_input import assert_refused
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


class Reader:
    """Reads one job's stream on a thread, connecting again behind the last event until it is over."""

    def __init__(self, member: Member, job_id: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self._http = httpx.Client(base_url=member.api.url, headers=member.http.headers, timeout=30, trust_env=False)
        self._path = f"/v1/jobs/{job_id}/events"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(timeout=30)
        assert not self._thread.is_alive(), "the stream did not end"
        self._http.close()

    def _run(self) -> None:
        while True:
            try:
                if self._read() == 204 or self._is_over():
                    return
            except httpx.TransportError:
                continue

    def _read(self) -> int:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": str(self.ids[-1])} if self.ids else {})
        with self._http.stream("GET", self._path, headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("id:"):
                    self.ids.append(int(line[3:]))
                if line.startswith("data:"):
                    self.events.append(json.loads(line[5:]))
            return answer.status_code

    def _is_over(self) -> bool:
        return bool(self.events) and self.events[-1]["data"].get("to") in ("succeeded", "failed", "cancelled")


def test_a_stream_ends_with_the_job(member: Member, worker: PeerWorker) -> None:
    job_id = member.submit()["id"]
    reader = Reader(member, job_id)
    worker.run_one_message()
    reader.join()
    assert [event["data"]["to"] for event in reader.events] == ["queued", "running", "succeeded"]
    assert reader.ids == [1, 2, 3] == [event["seq"] for event in reader.events]
    listed = member.http.get(f"/v1/jobs/{job_id}/events").json()
    assert listed == {"object": "list", "data": reader.events, "has_more": False}


def test_a_stream_resumes_behind_the_last_event(member: Member, worker: PeerWorker) -> None:
    job_id = member.submit()["id"]
    worker.run_one_message()
    seen: dict[int, list[int]] = {}
    for last in (0, 1, 2):
        headers = {"accept": "text/event-stream", "last-event-id": str(last)}
        text = member.http.get(f"/v1/jobs/{job_id}/events", headers=headers).text
        seen[last] = [int(line[3:]) for line in text.splitlines() if line.startswith("id:")]
    assert seen == {0: [1, 2, 3], 1: [2, 3], 2: [3]}
    over = member.http.get(f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream", "last-event-id": "3"})
    assert (over.status_code, over.content) == (204, b"")
    wrong = member.http.get(f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream", "last-event-id": "x"})
    assert_refused(wrong, 400, "Last-Event-ID")


def test_a_long_history_comes_in_pages_and_whole(member: Member, worker: PeerWorker) -> None:
    job_id = member.submit()["id"]
    [job] = worker.claim_next()
    for i in range(450):
        member.api.database.write(
            lambda uow, i=i: uow.events.append(job.id, attempt=job.attempt, type="progress", data={"done": i})  # type: ignore[misc]  # the default binds this round's number
        )
    worker.complete([job])
    reader = Reader(member, job_id)
    reader.join()
    assert reader.ids == list(range(1, 454))
    page = member.http.get(f"/v1/jobs/{job_id}/events?after=450&limit=2").json()
    assert ([event["seq"] for event in page["data"]], page["has_more"]) == ([451, 452], True)


@pytest.fixture
def restarting(start_api: StartApi, sqlite_url: str) -> Iterator[Member]:
    made = start_api(sqlite_url).member()
    yield made
    made.close()


def test_a_stream_goes_on_over_a_restart_of_the_api(restarting: Member, redis_server: RedisServer) -> None:
    api = restarting.api
    peer = PeerWorker(api.database, redis_server.url, "peer@restart")
    job_id = restarting.submit()["id"]
    reader = Reader(restarting, job_id)
    [job] = peer.claim_next()
    wait_until(lambda: len(reader.ids) == 2, within_s=10, what="two events on the stream")
    assert api.stop() == 0
    api.database.write(
        lambda uow: uow.events.append(job.id, attempt=job.attempt, type="message", data={"text": "meanwhile"})
    )
    api.start()
    peer.complete([job])
    reader.join()
    assert reader.ids == [1, 2, 3, 4]
    peer.close()
