"""How to submit work, follow it, and fetch what came of it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ondol import AsyncOndol, ItemErrors, JobRequest, NoSuchThing, Ondol, RequestRefused
from ondol.client.sync_jobs import Job

pytestmark = pytest.mark.integration

MODEL = "all-minilm-l6-v2"


def test_a_job_is_accepted_runs_and_has_a_result(client: Ondol) -> None:
    job = client.jobs.create("embedding", model=MODEL, input=["one", "two"])
    assert job.wait(timeout_s=30).status == "succeeded"
    result = job.result()
    assert [item.index for item in result.items] == [0, 1]
    assert result.model == f"{MODEL}:1"
    assert job.vectors().shape == (2, 384)


def test_a_job_says_how_far_it_is_and_how_long_it_took(client: Ondol) -> None:
    job = client.jobs.create("embedding", model=MODEL, input=["one", "two"], metadata={"owner": "guide"})
    job.wait(timeout_s=30)
    assert job.progress is not None
    assert (job.progress.done, job.progress.total, job.progress.unit) == (2, 2, "inputs")
    assert {"queue_wait_s", "load_s", "tokenize_s", "forward_s", "store_s"} <= set(job.timings)
    assert job.usage["tokens"] == 6  # [CLS] one [SEP], twice
    assert job.metadata == {"owner": "guide"}


def test_events_tell_the_whole_story_in_order(client: Ondol) -> None:
    job = client.jobs.create("embedding", model=MODEL, input="one")
    events = list(job.events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.data["to"] for event in events if event.type == "state"] == ["queued", "running", "succeeded"]


def test_events_can_be_read_from_where_one_left_off(client: Ondol) -> None:
    job = client.jobs.create("embedding", model=MODEL, input="one").wait(timeout_s=30)
    assert [event.seq for event in client.jobs.events(job.id, after_seq=1)] == [2, 3]
    assert [event.seq for event in client.jobs.past_events(job.id)] == [1, 2, 3]


def test_many_jobs_are_submitted_in_one_transaction(client: Ondol) -> None:
    requests = [JobRequest("embedding", f"text {number}", MODEL) for number in range(50)]
    jobs = [job for job in client.jobs.create_many(requests) if isinstance(job, Job)]
    ended = client.jobs.wait_many([job.id for job in jobs], timeout_s=60)
    assert {job.status for job in ended} == {"succeeded"}
    assert len(ended) == 50


def test_a_bad_job_of_a_batch_does_not_spoil_the_others(client: Ondol) -> None:
    with pytest.raises(ItemErrors) as caught:
        client.jobs.create_many([JobRequest("embedding", "a", MODEL), JobRequest("embedding", "a", "no-such-model")])
    assert caught.value.errors[1].code == "model_not_found"
    assert client.jobs.wait(caught.value.partial[0].id, timeout_s=30).status == "succeeded"


def test_the_same_idempotency_key_gives_the_same_job(client: Ondol) -> None:
    first = client.jobs.create("embedding", model=MODEL, input="once", idempotency_key="guide-once")
    again = client.jobs.create("embedding", model=MODEL, input="once", idempotency_key="guide-once")
    assert again.id == first.id


def test_jobs_are_listed_newest_first_over_all_pages(client: Ondol) -> None:
    submitted = [client.jobs.create("embedding", model=MODEL, input=f"listed {number}").id for number in range(3)]
    newest = [job.id for job in client.jobs.list(kind="embedding", limit=3)]
    assert newest == submitted[::-1]


def test_a_job_that_waits_can_be_cancelled(client: Ondol) -> None:
    job = client.jobs.create("embedding", model=MODEL, input=["later"] * 2000, priority="bulk")
    assert job.cancel().status == "cancelled"
    assert job.refresh().status == "cancelled"


def test_a_deleted_job_is_gone(client: Ondol) -> None:
    job = client.jobs.create("embedding", model=MODEL, input="forget me").wait(timeout_s=30)
    client.jobs.delete(job.id)
    with pytest.raises(NoSuchThing):
        client.jobs.get(job.id)


def test_a_wrong_option_is_refused_by_name_before_anything_is_stored(client: Ondol) -> None:
    with pytest.raises(RequestRefused) as caught:
        client.jobs.create("embedding", model=MODEL, input="a", options={"poling": "mean"})
    assert caught.value.param == "options.poling"


def test_job_and_call_give_the_same_vector(client: Ondol) -> None:
    call = client.embed("the same", model=MODEL)
    job = client.embed("the same", model=MODEL, as_job=True)
    np.testing.assert_allclose(call, job, atol=1e-5)  # the same rows in other company


def test_the_async_client_follows_jobs_too(ondol_url: str) -> None:
    async def follow() -> tuple[list[int], str, int]:
        async with AsyncOndol(ondol_url) as client:
            job = await client.jobs.create("embedding", model=MODEL, input=["one", "two"])
            seen = [event.seq async for event in job.events()]
            await job.refresh()
            return seen, job.status, len((await job.result()).items)

    assert asyncio.run(follow()) == ([1, 2, 3], "succeeded", 2)
