"""What a receiver answers decides what comes next; a slow one holds up nobody."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

import pytest
import sqlalchemy as sa

from ondol import NoSuchThing, RequestRefused
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from ondol.sql.tables import notices
from ondol.sql.unit_of_work import UnitOfWork
from tests.http.api_process import MODEL, Member, job_body
from tests.waiting import wait_until
from tests.webhooks.conftest import TIMEOUT_S
from tests.webhooks.receiver import OK, Receiver, receiving

pytestmark = pytest.mark.integration

LIMIT_S = 60
ANSWERS: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "/gone": (410, {}),
    "/moved": (307, {"location": "/stolen"}),
    "/later": (503, {"retry-after": "40"}),
    "/broken": (500, {"retry-after": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", "set-cookie": "of-whom=us; path=/"}),
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Answers by path."""
    with receiving(lambda path: ANSWERS.get(path, (OK, {}))) as opened:
        yield opened


def ended(client: Ondol, url: str) -> Job:
    """A job that has ended, with that webhook."""
    return client.jobs.create("embedding", input="one text", model=MODEL, webhook=url).cancel()


def make_old(uow: UnitOfWork, job_id: str) -> None:
    """Let the job's notices have waited for two days, and come due."""
    old = {"created_at": uow.now - 2 * 86_400, "next_try_at": uow.now}
    uow.conn.execute(sa.update(notices).where(notices.c.job_id == job_id).values(old))


def wait_for_answer(job: Job, answer: str) -> None:
    wait_until(lambda: job.notices()[0].last_answer == answer, within_s=LIMIT_S, what=f"{answer!r} to be recorded")


def test_answers_other_than_success_are_obeyed(client: Ondol, member: Member, receiver: Receiver) -> None:
    gone, moved, later, broken = (ended(client, receiver.url + path) for path in ANSWERS)
    wait_for_answer(gone, "410 Gone")
    wait_for_answer(moved, "307 Temporary Redirect")
    wait_for_answer(later, "503 Service Unavailable")
    wait_for_answer(broken, "500 Internal Server Error")
    assert gone.notices()[0].status == "given_up" and gone.notices()[0].next_try_at is None
    [asked] = later.notices()
    assert asked.next_try_at is not None and asked.last_try_at is not None
    assert (asked.next_try_at - asked.last_try_at).total_seconds() > 39
    wait_until(lambda: broken.notices()[0].num_tries >= 3, within_s=LIMIT_S, what="more tries")
    assert len(set(receiver.ids_at("/broken"))) == 1
    assert all("cookie" not in each.headers for each in receiver.received)
    member.api.database.write(lambda uow: make_old(uow, broken.id))
    wait_until(lambda: broken.notices()[0].status == "given_up", within_s=LIMIT_S, what="the old notice to be given up")
    assert receiver.ids_at("/stolen") == []


def test_what_was_accepted_can_be_asked_for_again(client: Ondol, receiver: Receiver) -> None:
    job = ended(client, receiver.url + "/again")
    wait_until(lambda: job.notices()[0].status == "accepted", within_s=LIMIT_S, what="the first delivery")
    [notice] = job.notices()
    assert (notice.num_tries, notice.last_answer, notice.channel) == (1, "204 No Content", "webhook")
    again = client.jobs.redeliver(job.id, notice.id)
    assert (again.id, again.status) == (notice.id, "waiting")
    wait_until(lambda: len(receiver.ids_at("/again")) == 2, within_s=LIMIT_S, what="the second delivery")
    assert set(receiver.ids_at("/again")) == {notice.id}


def test_notices_belong_to_their_project(client: Ondol, member: Member, receiver: Receiver) -> None:
    job = ended(client, receiver.url)
    other = member.api.member(with_model=False)
    with Ondol(member.api.url, other.secret) as stranger:
        with pytest.raises(NoSuchThing):
            stranger.jobs.notices(job.id)
        with pytest.raises(NoSuchThing):
            stranger.jobs.redeliver(job.id, job.notices()[0].id)
        assert stranger.webhooks.secret() not in (client.webhooks.secret(), "")
    with pytest.raises(NoSuchThing):
        client.jobs.redeliver(job.id, "ntc_none")
    other.close()


def test_a_rotated_secret_signs_at_once(client: Ondol) -> None:
    before = client.webhooks.secret()
    assert client.webhooks.secret() == before
    after = client.webhooks.rotate_secret()
    assert after != before and client.webhooks.secret() == after


def test_a_receiver_that_never_answers_holds_up_nobody(client: Ondol, receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
        stuck = [ended(client, f"http://127.0.0.1:{silent.getsockname()[1]}/") for _ in range(40)]
        ended(client, receiver.url + "/quick")
        wait_until(lambda: receiver.ids_at("/quick"), within_s=LIMIT_S, what="the delivery to the other receiver")
        assert any(job.notices()[0].last_answer is None for job in reversed(stuck)), "it came behind all 40 others"
        wait_for_answer(stuck[0], f"no answer within {TIMEOUT_S} s")


def test_a_private_address_is_refused_when_the_job_is_submitted(member: Member, client: Ondol) -> None:
    with pytest.raises(RequestRefused, match="not a public address") as refused:
        client.jobs.create("embedding", input="x", model=MODEL, webhook="http://192.168.0.1/")
    assert refused.value.param == "webhook"
    items = [job_body(webhook="http://[::1]/"), job_body(webhook="http://127.0.0.1:9/")]
    outcomes = member.http.post("/v1/jobs/batch", json={"jobs": items}).json()["data"]
    assert outcomes[0]["error"]["param"] == "webhook" and outcomes[1]["webhook"] == "http://127.0.0.1:9/"
    client.jobs.cancel(outcomes[1]["id"]).delete()
