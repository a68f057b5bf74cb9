"""Fine-tunes by OpenAI's client: submitted, followed, paused, resumed, cancelled; refusals as typed exceptions."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.cluster import Cluster
from tests.openai_client.conftest import BASE
from tests.training_jobs.client import rows_of_weather
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

JOB_LIMIT_S = 180
LONG: dict[str, Any] = {
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 100, "batch_size": 4}}},
    "extra_body": {"options": {"validation_split": 0.2}},
}
NOWHERE = f"job_{'0' * 26}"


def upload(client: openai.OpenAI, content: str, name: str = "train.csv") -> str:
    return client.files.create(file=(name, content.encode()), purpose="fine-tune").id


def wait_for(client: openai.OpenAI, job_id: str, status: str) -> FineTuningJob:
    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status == status or job.finished_at is None, job
        return job if job.status == status else None

    found = wait_until(look, within_s=JOB_LIMIT_S, what=f"{job_id} to be {status}")
    assert found is not None
    return found


def wait_for_message(client: openai.OpenAI, job_id: str, part: str) -> None:
    """Wait until one of the newest events says so."""
    wait_until(
        lambda: any(part in event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=50).data),
        within_s=JOB_LIMIT_S,
        what=f"an event of {job_id} that says {part!r}",
    )


def test_a_training_is_followed_paused_resumed_and_cancelled(cluster: Cluster, client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    file_id = upload(client, rows_of_weather(120))
    job = jobs.create(model=BASE, training_file=file_id, suffix="weather", seed=7, **LONG)
    assert job.status == "validating_files"
    assert (job.training_file, job.validation_file, job.seed) == (file_id, None, 7)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (100, 4)
    with pytest.raises(openai.ConflictError) as in_use:
        client.files.delete(file_id)
    assert in_use.value.code == "file_in_use"

    wait_for_message(client, job.id, "evaluated: valid_loss")
    running = jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish is not None and running.estimated_finish >= running.created_at
    assert jobs.pause(job.id).id == job.id
    paused = wait_for(client, job.id, "paused")
    assert paused.finished_at is None and paused.fine_tuned_model is None
    kept = list(jobs.checkpoints.list(job.id, limit=1))
    assert len(kept) >= 2, "more pages than one"
    steps = [one.step_number for one in kept]
    assert steps == sorted(steps, reverse=True)
    assert kept[0].fine_tuned_model_checkpoint == f"{job.id}:ckpt-step-{steps[0]}"
    assert kept[0].metrics.step == steps[0] and kept[0].metrics.train_loss is not None
    assert any(one.metrics.valid_loss is not None for one in kept)
    with pytest.raises(openai.BadRequestError) as not_a_model:
        client.embeddings.create(model=kept[0].fine_tuned_model_checkpoint, input="rain")
    assert not_a_model.value.code == "checkpoint_not_published"

    for _ in range(2):  # the second is a try whose first answer was lost
        assert jobs.resume(job.id, extra_headers={"Idempotency-Key": "go-on"}).status == "queued"
    with pytest.raises(openai.ConflictError) as twice:
        jobs.resume(job.id)
    assert twice.value.code == "illegal_transition"
    wait_for_message(client, job.id, f"training goes on from step {steps[0]}")
    cancelled = jobs.cancel(job.id)
    assert cancelled.status == "cancelled" and cancelled.finished_at is not None
    assert jobs.cancel(job.id).finished_at == cancelled.finished_at, "once more changes nothing"
    with pytest.raises(openai.ConflictError):
        jobs.pause(job.id)
    check_events(client, job.id)


def check_events(client: openai.OpenAI, job_id: str) -> None:
    pages = list(client.fine_tuning.jobs.list_events(job_id, limit=7).iter_pages())
    assert len(pages) > 2
    events = [event for page in pages for event in page.data]
    numbers = [int(event.id.rpartition("_")[2]) for event in events]
    assert numbers == sorted(set(numbers), reverse=True), "newest first, none twice"
    assert events[0].message == "cancelled on request" or events[1].message == "cancelled on request"
    assert events[-1].message.startswith(f"accepted: to train {BASE}:1")
    said = [event.message for event in events]
    assert "the files are good: 96 training and 24 validation rows, 3 labels, 2400 steps" in said
    assert "paused on request, on a checkpoint" in said
    measured: Any = next(event.data for event in events if event.type == "metrics" and ": loss" in event.message)
    assert measured["total_steps"] == 2400 and measured["train_loss"] > 0


def test_a_page_of_jobs_ends_where_the_next_begins(client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    file_id = upload(client, rows_of_weather(30))
    made = [jobs.create(model=BASE, training_file=file_id, metadata={"round": "first", "n": str(n)}) for n in range(5)]
    ids = [jobs.cancel(job.id).id for job in made][::-1]
    pages = list(jobs.list(limit=2, metadata={"round": "first"}).iter_pages())
    assert [len(page.data) for page in pages] == [2, 2, 1]
    assert [job.id for page in pages for job in page.data] == ids
    assert [job.id for job in jobs.list(metadata={"round": "first", "n": "3"})] == [ids[1]]
    assert not list(jobs.list(metadata={"round": ""}))
    without = [job.id for job in jobs.list(extra_query={"metadata": "null"})]
    assert not set(without) & set(ids)
    assert [job.id for job in jobs.list(limit=3)] == [job.id for job in jobs.list()]


def test_the_job_is_the_one_of_our_own_route(cluster: Cluster, client: openai.OpenAI) -> None:
    file_id = upload(client, rows_of_weather(30))
    asked: dict[str, Any] = {
        "model": BASE,
        "training_file": file_id,
        "hyperparameters": {"n_epochs": "auto", "batch_size": 8, "learning_rate_multiplier": 2},
        "extra_body": {
            "options": {"backbone": "frozen", "output_name": "moods", "hyperparameters": {"weight_decay": 0.1}},
            "priority": "bulk",
            "nobody": "knows this field",
        },
        "extra_headers": {"Idempotency-Key": "one"},
    }
    job = client.fine_tuning.jobs.create(**asked)
    assert client.fine_tuning.jobs.create(**asked).id == job.id
    with pytest.raises(openai.UnprocessableEntityError) as other_body:
        client.fine_tuning.jobs.create(**asked | {"suffix": "other"})
    assert other_body.value.code == "idempotency_mismatch"
    client.fine_tuning.jobs.cancel(job.id)
    shown: Any = client.get(f"/jobs/{job.id}", cast_to=object)
    assert (shown["kind"], shown["status"], shown["priority"]) == ("fine-tune", "cancelled", "bulk")
    hyper = job.hyperparameters
    assert (hyper.n_epochs, hyper.batch_size, hyper.learning_rate_multiplier) == (3, 8, 2.0)
    [record] = cluster.database.read(lambda uow: uow.jobs.get_many([job.id], job.organization_id))
    assert record.options["output_name"] == "moods"
    assert record.options["hyperparameters"]["learning_rate"] == pytest.approx(0.002)
    assert record.options["hyperparameters"]["weight_decay"] == 0.1


def test_a_mistake_in_the_data_is_told_by_the_job(client: openai.OpenAI) -> None:
    file_id = upload(client, "words,label\nwarm,a\ncold,b\n")
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file_id)
    failed = wait_for(client, job.id, "failed")
    assert failed.error is not None and "text" in failed.error.message
    newest = next(iter(client.fine_tuning.jobs.list_events(job.id)))
    assert newest.level == "error" and failed.error.message in newest.message


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"suffix": "Upper Case"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": "many"}}, "hyperparameters.batch_size"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": 1e9}}}},
            "method.supervised.hyperparameters.learning_rate_multiplier",
        ),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"options": {"output_name": "a"}, "suffix": "b"}, "options.output_name"),
        ({"options": {"train_file": f"file_{'0' * 26}"}}, "options.train_file"),
        ({"options": {"backbone": "lost"}}, "options.backbone"),
        (
            {"options": {"hyperparameters": {"num_train_epochs": 2}}, "hyperparameters": {"n_epochs": 2}},
            "options.hyperparameters.num_train_epochs",
        ),
        ({"model": "Not A Name"}, "model"),
        ({"model": f"{NOWHERE}:ckpt-step-3"}, "model"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, wrong: dict[str, Any], param: str) -> None:
    given = {name: value for name, value in wrong.items() if name != "options"}
    extra = {"options": wrong["options"]} if "options" in wrong else {}
    asked: dict[str, Any] = {"model": BASE, "training_file": f"file_{'0' * 26}", **given}
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(**asked, extra_body=extra)
    assert caught.value.param == param


def test_what_is_not_there_is_not_found(cluster: Cluster, client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    for ask in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        for job_id in (NOWHERE, "ftjob-abc"):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(job_id)
            assert caught.value.code == "job_not_found"
    for given, param in (({"training_file": "file-abc"}, "training_file"), ({"model": "unknown"}, "model")):
        asked: dict[str, Any] = {"model": BASE, "training_file": f"file_{'0' * 26}", **given}
        with pytest.raises(openai.NotFoundError) as caught:
            jobs.create(**asked)
        assert caught.value.param == param
    body = {"kind": "embedding", "model": BASE, "input": "a job of another kind"}
    other: Any = client.post("/jobs", cast_to=object, body=body)
    with pytest.raises(openai.NotFoundError, match="is no fine-tune"):
        jobs.retrieve(other["id"])
    with pytest.raises(openai.BadRequestError) as cursor:
        list(jobs.list_events(upload_and_cancel(client), after=f"ftevent_{'0' * 26}_3"))
    assert cursor.value.param == "after"


def upload_and_cancel(client: openai.OpenAI) -> str:
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, rows_of_weather(3)))
    return client.fine_tuning.jobs.cancel(job.id).id
