"""Watchers are counted, bounded and let go: what many clients leave open or leave behind takes nothing from others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.http.api_process import ApiProcess, Member, job_body
from tests.http.shared_api import api_fixture
from tests.overload.watchers import asks, head_of, held_by, num_body_bytes, num_streams, status_of, vanish, watching
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MOST, MOST_OF_PROJECT = 20, 12
GONE_S = 3
BODY_BYTES = 700 * 1024
"""Of two there is room for one only: ONDOL_MAX_BODIES_MB is 1."""
FILE_BYTES = 64 * 1024 * 1024
HEARTBEAT_S = 15
LIMIT_S = 30


api = api_fixture(
    max_event_streams=MOST, project_max_event_streams=MOST_OF_PROJECT, client_gone_s=GONE_S, max_bodies_mb=1
)


@pytest.fixture
def member(api: ApiProcess) -> Iterator[Member]:
    made = api.member()
    yield made
    made.close()


@pytest.fixture
def job_id(member: Member) -> str:
    """A job that waits, so that its events go on."""
    return str(member.submit()["id"])


def test_a_project_with_its_share_of_streams_is_told_to_come_back(api: ApiProcess, member: Member, job_id: str) -> None:
    other = api.member()
    with watching(api.port, job_id, MOST_OF_PROJECT, secret=member.secret):
        refused = member.http.get(f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream"})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "ONDOL_PROJECT_MAX_EVENT_STREAMS" in refused.json()["error"]["message"]
        assert member.http.get(f"/v1/jobs/{job_id}/events").status_code == 200, "the list answers"
        others_job = other.submit()["id"]
        with watching(api.port, others_job, MOST - MOST_OF_PROJECT, secret=other.secret):
            full = other.http.get(f"/v1/jobs/{others_job}/events", headers={"accept": "text/event-stream"})
            assert full.status_code == 503 and int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["code"] == "not_ready"
            assert num_streams(api.port) == MOST
    other.close()
    wait_until(lambda: num_streams(api.port) == 0, within_s=LIMIT_S, what="the streams to be counted no more")
    with watching(api.port, job_id, MOST_OF_PROJECT, secret=member.secret):
        assert num_streams(api.port) == MOST_OF_PROJECT, "there is room again"


def test_watchers_that_leave_before_the_first_event_hold_no_place(api: ApiProcess, member: Member, job_id: str) -> None:
    head = head_of("GET", f"/v1/jobs/{job_id}/events", accept="text/event-stream", secret=member.secret)
    for _ in range(3 * MOST):
        asks(api.port, head).close()

    def has_all_places() -> bool:
        with contextlib.ExitStack() as held:
            mine = [held.enter_context(asks(api.port, head)) for _ in range(MOST_OF_PROJECT)]
            statuses = {status_of(watcher) for watcher in mine}
        return statuses == {200}

    wait_until(has_all_places, within_s=LIMIT_S, what="all places to be free")


def test_watchers_that_vanish_without_closing_are_found_out(api: ApiProcess, member: Member, job_id: str) -> None:
    wait_until(lambda: num_streams(api.port) == 0, within_s=LIMIT_S, what="no stream to be open")
    before = held_by(api.pid)
    with watching(api.port, job_id, MOST_OF_PROJECT, secret=member.secret) as watchers:
        try:
            vanish(watchers)
        except PermissionError:
            pytest.skip("only root can leave a connection without closing it")
        assert num_streams(api.port) > MOST_OF_PROJECT / 2, "nobody has told the api"
        wait_until(
            lambda: num_streams(api.port) == 0, within_s=2 * HEARTBEAT_S + GONE_S, what="the vanished to be left"
        )
    most = before["files"] + 2
    wait_until(lambda: held_by(api.pid)["files"] <= most, within_s=LIMIT_S, what="their files to be closed")


def test_a_reader_that_takes_nothing_is_left_and_a_slow_one_is_not(api: ApiProcess, member: Member) -> None:
    content = b'{"text": "warm"}\n' * (FILE_BYTES // 17)
    sent = member.http.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"})
    assert sent.status_code == 200, sent.text
    head = head_of("GET", f"/v1/files/{sent.json()['id']}/content", secret=member.secret)
    before = held_by(api.pid)["connections"]
    with (
        asks(api.port, head, receive_bytes=64 * 1024) as stalled,
        asks(api.port, head, receive_bytes=64 * 1024) as slow,
    ):
        taken = 0

        def is_one_left() -> bool:
            nonlocal taken
            taken += len(slow.recv(16 * 1024))
            return held_by(api.pid)["connections"] <= before + 1

        wait_until(is_one_left, within_s=10 * GONE_S, what="the stalled reader to be left")
        assert 0 < taken < len(content) / 2
        for _ in range(100):
            assert slow.recv(16 * 1024), "still served"
        with pytest.raises(ConnectionError):
            _read_all(stalled)


def test_half_sent_bodies_fill_no_more_than_their_room(api: ApiProcess, member: Member) -> None:
    headers = {"content-type": "application/json"}
    body = b" " * BODY_BYTES  # it is read, and is no JSON
    head = head_of(
        "POST", "/v1/jobs", content_length=str(BODY_BYTES), content_type="application/json", secret=member.secret
    )

    def status_of_another() -> int:
        return member.http.post("/v1/jobs", content=body, headers=headers).status_code

    assert status_of_another() == 400
    with _half_sent(api, head, body) as half_sent:
        refused = member.http.post("/v1/jobs", content=body, headers=headers)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert "ONDOL_MAX_BODIES_MB" in refused.json()["error"]["message"]
        assert member.http.post("/v1/jobs", json=job_body()).status_code == 202, "what is small has room"
        half_sent.sendall(body[-1:])
        assert status_of(half_sent) == 400
    assert status_of_another() == 400
    with _half_sent(api, head, body):
        assert status_of_another() == 503
    wait_until(lambda: status_of_another() == 400, within_s=LIMIT_S, what="the body of who left to be forgotten")


@contextlib.contextmanager
def _half_sent(api: ApiProcess, head: str, body: bytes) -> Iterator[socket.socket]:
    """A connection on which all but the last byte of the body was sent, which the api holds."""
    wait_until(lambda: num_body_bytes(api.port) == 0, within_s=LIMIT_S, what="no body to be held")
    with asks(api.port, head) as connection:
        connection.sendall(body[:-1])
        held = len(body) - 1
        wait_until(lambda: num_body_bytes(api.port) == held, within_s=LIMIT_S, what="the half-sent body to be held")
        yield connection


def _read_all(connection: socket.socket) -> None:
    while connection.recv(1024 * 1024):
        pass
