"""A receiver gets each end of a job exactly once accepted, through its own outages and the death of the api."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import openai
import pytest
import sqlalchemy as sa

from ondol import verify_webhook
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Failure
from ondol.sql.tables import messages, notices
from tests.http.api_process import MODEL, ApiProcess, Member
from tests.http.peer_worker import PeerWorker
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.webhooks.conftest import FLOWER_URL, LOOPBACK
from tests.webhooks.receiver import OK, Received, Receiver, receiving

pytestmark = pytest.mark.integration

DELIVERY_LIMIT_S = 60


def submit(client: Ondol, receiver: Receiver, *, path: str = "/hook") -> Job:
    return client.jobs.create("embedding", input="one text", model=MODEL, webhook=receiver.url + path)


def wait_for_tries(jobs: list[Job]) -> None:
    def tried() -> bool:
        seen = [job.notices() for job in jobs]
        return all(each and all(notice.last_answer for notice in each) for each in seen)

    wait_until(tried, within_s=DELIVERY_LIMIT_S, what="a refused try of each")


def wait_for_accepted(receiver: Receiver, num: int) -> None:
    wait_until(lambda: len(receiver.accepted()) >= num, within_s=DELIVERY_LIMIT_S, what=f"{num} accepted deliveries")


def test_each_end_is_accepted_once_through_two_outages_of_the_receiver(
    member: Member, client: Ondol, redis_server: RedisServer
) -> None:
    database = member.api.database
    receiver = Receiver()
    worker = PeerWorker(database, redis_server.url, "peer@webhooks")
    try:
        receiver.start()
        told = submit(client, receiver)
        complete(database, worker, told.id)
        wait_for_accepted(receiver, 1)

        assert json.loads(receiver.received[0].body)["data"]["flower_url"].startswith(f"{FLOWER_URL}/task/msg_")
        receiver.stop()  # the first outage: a job succeeds, another is cancelled
        succeeded = submit(client, receiver)
        complete(database, worker, succeeded.id)
        cancelled = submit(client, receiver).cancel()
        wait_for_tries([succeeded, cancelled])
        assert len(receiver.received) == 1
        receiver.start()
        wait_for_accepted(receiver, 3)

        receiver.stop()  # the second: a job fails, and fails no more when it is tried again
        retried = submit(client, receiver)
        fail(database, worker, retried.id)
        wait_until(lambda: retried.refresh().has_ended, within_s=10, what="the job to fail")
        retried.retry()
        complete(database, worker, retried.id)
        wait_for_tries([retried])
        receiver.start()
        wait_for_accepted(receiver, 5)
        jobs = [told, succeeded, cancelled, retried]
        wait_until(lambda: all(is_told(job) for job in jobs), within_s=DELIVERY_LIMIT_S, what="the records")
    finally:
        receiver.stop()
        worker.close()
    assert sorted(ends(receiver.received, client.webhooks.secret())) == sorted(
        [
            (told.id, "job.succeeded"),
            (succeeded.id, "job.succeeded"),
            (cancelled.id, "job.cancelled"),
            (retried.id, "job.failed"),
            (retried.id, "job.succeeded"),
        ]
    )
    assert len({each.id for each in receiver.received}) == 5


def test_a_delivery_whose_record_died_with_the_api_comes_again_under_its_id(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    url = f"sqlite:///{tmp_path / 'ondol.db'}"
    api = ApiProcess(tmp_path, database_url=url, redis_url=redis_server.url, webhook_networks=LOOPBACK)
    is_first, is_cancelled = iter((True,)), threading.Event()

    def respond(_path: str) -> tuple[int, Mapping[str, str]]:
        if next(is_first, False):
            is_cancelled.wait(DELIVERY_LIMIT_S)
            api.kill()  # the POST has come; its record never will
        return OK, {}

    api.start()
    member = api.member()
    try:
        with receiving(respond) as receiver, Ondol(api.url, member.secret) as client:
            job = submit(client, receiver).cancel()
            is_cancelled.set()
            wait_until(lambda: receiver.received, within_s=DELIVERY_LIMIT_S, what="the delivery")
            api.database.write(lambda uow: uow.conn.execute(sa.update(notices).values(next_try_at=uow.now)))
            api.start()
            wait_until(lambda: is_told(job), within_s=DELIVERY_LIMIT_S, what="the record")
            assert [each.id for each in receiver.received] == [job.notices()[0].id] * 2
            assert job.notices()[0].num_tries == 2
            assert set(ends(receiver.received, client.webhooks.secret())) == {(job.id, "job.cancelled")}
    finally:
        member.close()
        api.close()


def is_told(job: Job) -> bool:
    return all(notice.status == "accepted" for notice in job.notices())


def claim(database: Database, worker: PeerWorker, job_id: str) -> ClaimedJob:
    """The job, claimed, with room in the window for the next; messages of others are passed over."""
    while True:
        claimed = worker.claim_next()
        database.write(lambda uow: uow.conn.execute(sa.delete(messages).where(messages.c.claimed_at.is_not(None))))
        for job in claimed:
            if job.id == job_id:
                return job


def complete(database: Database, worker: PeerWorker, job_id: str) -> None:
    worker.complete([claim(database, worker, job_id)])


def fail(database: Database, worker: PeerWorker, job_id: str) -> None:
    job = claim(database, worker, job_id)
    failure = Failure(job.id, job.attempt, {"code": "device_error", "message": "the device is gone", "param": None})
    database.write(lambda uow: uow.attempts.fail([failure], max_retries=0))


def ends(received: list[Received], secret: str) -> list[tuple[str, str]]:
    """Job and type of each delivery, verified by two independent verifiers."""
    found = []
    with openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9") as verifier:
        for each in received:
            verifier.webhooks.verify_signature(each.body, dict(each.headers), secret=secret)
            event = verify_webhook(each.body, each.headers, secret)
            assert event == json.loads(each.body) and event["id"] == each.id and event["object"] == "event"
            assert event["data"]["object"] == "job" and "one text" not in each.body.decode()
            found.append((event["data"]["id"], event["type"]))
    return found
