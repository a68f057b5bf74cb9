"""Workers, device processes and messages die, stand still or come a thousand times: one job, one effect.

Scenarios 1-4, 9, 20, 23, 24, 33, 39 and 40 of `docs/reliability.md`, on one house whose worker is brought back.
"""

from __future__ import annotations

import base64
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from tokenizers import Tokenizer

from ondol.sql.tables import events, messages
from tests.reliability.house import LIMIT_S, SLOW, TERMINAL, House
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

FIRST_BACKOFF_S = 0.2
GUILTY = "password"
"""A word whose first token ends the device process."""


@pytest.fixture(scope="module")
def house(sqlite_house: House, tiny_version: Path) -> House:
    """Api, reconciler and one worker with a slow device."""
    sqlite_house.start_api()
    sqlite_house.start_reconciler()
    sqlite_house.start_worker(faults=[*SLOW, "--trigger-token", str(_guilty_token(tiny_version))])
    wait_until(lambda: sqlite_house.lines_of("reconciler", "reconciler.leads"), within_s=LIMIT_S, what="a leader")
    return sqlite_house


@pytest.fixture(autouse=True)
def _house_is_whole(house: House) -> Iterator[None]:
    """Every test finds a worker that serves, and leaves nothing of its own behind."""
    yield
    for name in ("worker0", "reconciler"):
        house.thaw(name)
    wait_until(lambda: house.num_messages() == 0, within_s=LIMIT_S, what="no message to be out")


def test_1_a_message_that_died_with_a_frozen_worker_is_rung_again_once(house: House) -> None:
    before, queue = house.repairs(), house.queue_of()
    house.freeze("reconciler")  # so that it looks once, when all of this has happened
    house.freeze("worker0")
    job_id = house.submit()
    wait_until(lambda: house.num_messages(is_claimed=False) == 1, within_s=LIMIT_S, what="the message to be rung")
    wait_until(lambda: house.queue_length(queue) == 0, within_s=LIMIT_S, what="Redis to hand it to the frozen worker")
    house.kill("worker0")
    house.bring_back()
    house.thaw("reconciler")
    house.ended(job_id)
    assert house.attempts_of(job_id) == [(1, "succeeded")]
    assert (house.repairs() - before)["message_lost"] == 1


def test_2_what_a_killed_worker_ran_succeeds_in_its_second_attempt(house: House) -> None:
    before = house.repairs()
    job_id = house.long_job()
    device = psutil.Process(house.device_pid("worker0"))
    house.kill("worker0")
    wait_until(lambda: not device.is_running(), within_s=LIMIT_S, what="the device process to follow its worker")
    house.bring_back()
    house.ended(job_id)
    assert house.attempts_of(job_id) == [(1, "lost"), (2, "succeeded")]
    assert house.reasons_of(job_id) == ["accepted", "claimed", "session_lapsed", "claimed", "completed"]
    assert house.num_results([job_id]) == 1
    assert (house.repairs() - before)["job_taken_back"] <= 1, "by the reconciler, or by the worker that came back"


def test_3_a_killed_device_process_costs_neither_worker_nor_attempt(house: House) -> None:
    before, worker = house.repairs(), house.processes["worker0"].pid
    num_lost = len(house.lines_of("worker0", "device.lost"))
    job_id = house.long_job()
    device = house.device_pid("worker0")
    os.kill(device, signal.SIGKILL)
    house.ended(job_id)
    assert house.attempts_of(job_id) == [(1, "succeeded")]
    assert house.repairs() == before, "nothing was queued again: the worker itself ran the batch once more"
    assert house.processes["worker0"].pid == worker and house.processes["worker0"].poll() is None
    assert house.device_pid("worker0") != device
    assert len(house.lines_of("worker0", "device.lost")) == num_lost + 1


def test_4_a_job_that_always_kills_its_device_fails_after_three_deaths(house: House) -> None:
    num_lost = len(house.lines_of("worker0", "device.lost"))
    job_id = house.submit(f"the {GUILTY} of my account")
    job = house.ended(job_id, "failed")
    assert job["error"]["code"] == "worker_lost"
    assert house.attempts_of(job_id) == [(1, "failed")]
    deaths = house.lines_of("worker0", "device.lost")[num_lost:]
    assert len(deaths) == 3
    house.ended(house.submit("the lane is healthy"))
    starts = [line for line in house.lines_of("worker0", "device.up") if line["timestamp"] > deaths[0]["timestamp"]]
    pauses_s = [(_time_of(up) - _time_of(down)).total_seconds() for down, up in zip(deaths, starts, strict=True)]
    assert min(pauses_s) >= FIRST_BACKOFF_S, "no hot loop"


def test_9_connections_that_redis_cuts_in_mid_job_lead_to_no_second_run(house: House) -> None:
    job_id = house.long_job()
    with house.redis.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    following = house.submit_many(5)
    house.ended(job_id)
    house.all_ended(following)
    assert house.outcomes([job_id, *following]) == Counter({(1, "succeeded"): 6})


def test_20_a_message_that_is_published_twice_is_claimed_once(house: House) -> None:
    before, queue = house.repairs()["message_lost"], house.queue_of()
    house.freeze("worker0")
    job_id = house.submit()
    wait_until(lambda: house.repairs()["message_lost"] > before, within_s=LIMIT_S, what="the job to be rung again")
    wait_until(lambda: house.queue_length(queue) > 0, within_s=LIMIT_S, what="the second message in the queue")
    house.thaw("worker0")
    house.ended(job_id)
    wait_until(lambda: house.queue_length(queue) == 0, within_s=LIMIT_S, what="the other message to be taken")
    house.ended(house.submit("behind both messages"))
    assert house.attempts_of(job_id) == [(1, "succeeded")]
    assert house.num_results([job_id]) == 1


def test_23_a_job_that_was_cancelled_while_queued_never_runs(house: House) -> None:
    queue = house.queue_of()
    house.freeze("worker0")
    cancelled = [house.submit(f"never run {i}") for i in range(3)]
    wait_until(lambda: house.num_messages() > 0, within_s=LIMIT_S, what="the jobs to be rung")
    for job_id in cancelled:
        assert house.http.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    house.kill("worker0")
    house.bring_back()
    house.ended(house.submit("behind them"))
    wait_until(lambda: house.queue_length(queue) == 0, within_s=LIMIT_S, what="the messages of the cancelled jobs")
    assert house.outcomes(cancelled) == Counter()
    assert {house.job(job_id)["status"] for job_id in cancelled} == {"cancelled"}
    assert house.num_results(cancelled) == 0


def test_24_cancels_that_race_with_success_are_answered_by_what_happened(house: House) -> None:
    ids = house.submit_many(150)
    with ThreadPoolExecutor(4) as pool:
        answers = dict(
            zip(ids, pool.map(lambda i: house.http.post(f"/v1/jobs/{i}/cancel").status_code, ids), strict=True)
        )
    wait_until(
        lambda: all(house.job(job_id)["status"] in TERMINAL for job_id in ids), within_s=LIMIT_S, what="all to end"
    )
    ended = {job_id: house.job(job_id)["status"] for job_id in ids}
    assert {(answers[job_id], ended[job_id]) for job_id in ids} <= {(200, "cancelled"), (409, "succeeded")}
    query = sa.select(events.c.job_id, events.c.data).where(events.c.job_id.in_(ids), events.c.type == "state")
    moves = house.database.read(lambda uow: uow.conn.execute(query).all())
    ends = Counter(row.job_id for row in moves if row.data["to"] in TERMINAL)
    assert ends == Counter(dict.fromkeys(ids, 1)), "one terminal state each"
    assert house.num_results(ids) == Counter(ended.values())["succeeded"]


def test_33_a_version_that_is_deleted_while_it_is_loaded_serves_what_was_accepted(
    house: House, tiny_version: Path
) -> None:
    house.publish(tiny_version, "passing")
    second = house.publish(tiny_version, "passing")
    house.freeze("worker0")
    job_id = house.submit("the model goes while I wait", model=second.ref)
    assert house.http.delete(f"/v1/models/{second.ref}").status_code in (200, 204)
    house.thaw("worker0")
    job = house.ended(job_id)
    assert job["model"] == second.ref
    refused = house.http.post("/v1/jobs", json={"kind": "embedding", "model": second.ref, "input": "too late"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    called = house.http.post("/v1/embeddings", json={"model": second.ref, "input": "too late"})
    assert called.status_code == 404


def test_39_poisoned_messages_are_thrown_away_and_the_worker_goes_on(house: House) -> None:
    queue, worker = house.queue_of(), house.processes["worker0"]
    template = _a_message(house)
    poison = [
        _changed(template, body=b"{not json"),
        _changed(template, body=json.dumps([[], {"v": 1}, {}]).encode()),
        _changed(template, body=json.dumps([[], {"v": 99, "message": "msg_x", "jobs": []}, {}]).encode()),
        _changed(template, body=json.dumps([[], {"v": 1, "message": "m" * 10_000_000, "jobs": []}, {}]).encode()),
        _changed(template, task="somebody.elses"),
        _changed(template, body=json.dumps([[], {"v": 1, "message": 17, "jobs": None}, {}]).encode()),
        b"no message at all",
        b"[1, 2]",
    ]
    with house.redis.client() as client:
        for each in poison:
            client.lpush(queue, each)
    wait_until(lambda: house.queue_length(queue) == 0, within_s=LIMIT_S, what="the poison to be taken")
    job_id = house.submit("the worker goes on")
    house.ended(job_id)
    assert house.attempts_of(job_id) == [(1, "succeeded")]
    assert worker.poll() is None, "the same process"


def test_40_a_storm_of_one_message_is_one_attempt(house: House) -> None:
    queue = house.queue_of()
    raw = _a_message(house)
    house.freeze("worker0")
    job_id = house.submit([f"number {i} of the storm" for i in range(40)])  # runs while the others come
    query = sa.select(messages.c.id)
    [message_id] = wait_until(
        lambda: house.database.read(lambda uow: list(uow.conn.execute(query).scalars())),
        within_s=LIMIT_S,
        what="the message",
    )
    body = json.dumps([[], {"v": 1, "message": message_id, "jobs": [[job_id, 0]]}, {}]).encode()
    with house.redis.client() as client:
        client.lpush(queue, *[_changed(raw, body=body)] * 1000)
    house.thaw("worker0")
    house.ended(job_id)
    wait_until(lambda: house.queue_length(queue) == 0, within_s=LIMIT_S, what="the storm to be over")
    house.ended(house.submit("after the storm"))
    assert house.attempts_of(job_id) == [(1, "succeeded")]
    assert house.num_results([job_id]) == 1


def _time_of(line: dict[str, Any]) -> datetime:
    """When the line was logged."""
    return datetime.fromisoformat(line["timestamp"])


def _a_message(house: House) -> bytes:
    """A message as the product publishes it, taken from the queue of a frozen worker; its job succeeds in the end."""
    queue = house.queue_of()
    house.freeze("worker0")
    held, job_id = house.submit("taken by the frozen worker"), house.submit("left in the queue")
    wait_until(lambda: house.queue_length(queue) > 0, within_s=LIMIT_S, what="a message in the queue")
    with house.redis.client() as client:
        raw = str(client.lindex(queue, 0)).encode()
    house.thaw("worker0")
    house.all_ended([held, job_id])
    return raw


def _changed(raw: bytes, *, body: bytes | None = None, task: str | None = None) -> bytes:
    """The message with another body, or for another task."""
    envelope: dict[str, Any] = json.loads(raw)
    if body is not None:
        envelope["body"] = base64.b64encode(body).decode()
    if task is not None:
        envelope["headers"]["task"] = task
    return json.dumps(envelope).encode()


def _guilty_token(version: Path) -> int:
    """A token that stands in `GUILTY` and in no other text of this file."""
    tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
    own = "the fire burns below never run number of warm floors this house lane is healthy behind both messages them"
    own += " model goes while I wait too late worker on after storm taken by frozen left in queue 0123456789"
    others = {i for word in own.split() for i in tokenizer.encode(f"the {word} a").ids}
    ids: list[int] = tokenizer.encode(f"the {GUILTY} of", add_special_tokens=False).ids
    return next(i for i in ids if i not in others)
