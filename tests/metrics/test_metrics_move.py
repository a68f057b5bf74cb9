"""What happens is counted, by the process that saw it; every count is read as Prometheus reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from ondol.metrics.roles import IntakeMetrics
from tests.cluster import REPOSITORY
from tests.metrics.watched import SECRET, Watched, read_scrape
from tests.servers import RedisServer
from tests.training_jobs.client import TrainingClient, rows_of_weather
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

LIMIT_S = 60
PROCESSES = ("api", "reconciler", "worker0", "trainer0")
_ROW = re.compile(r"\| `(ondol_\w+)` \| (\w+) \| (.*?) \| ([\w, ]+) \| (.+) \|")


def test_the_table_of_the_docs_is_what_the_processes_export(watched: Watched) -> None:
    wait_until(lambda: watched.scrape("reconciler").value("ondol_reconciler_leads"), within_s=LIMIT_S, what="a leader")
    table = [row.groups() for row in _ROW.finditer((REPOSITORY / "docs" / "metrics.md").read_text())]
    assert len(table) > 30
    scrapes = {name.rstrip("0"): watched.scrape(name) for name in PROCESSES}
    scrapes["intake"] = read_scrape(generate_latest(IntakeMetrics().registry).decode())
    for process, scraped in scrapes.items():
        written = {
            (each[0], each[1], each[4]): set(re.findall(r"`(\w+)`", each[2])) for each in table if process in each[3]
        }
        exported = {
            (family.name + ("_total" if family.type == "counter" else ""), family.type, family.documentation): family
            for family in scraped.families.values()
            if family.name.startswith("ondol_")
        }
        assert exported.keys() == written.keys()
        for key, family in exported.items():
            assert {label for sample in family.samples for label in sample.labels} - {"le"} <= written[key]


def test_a_job_moves_the_counters_of_all_who_touched_it(watched: Watched) -> None:
    before = {name: watched.scrape(name) for name in PROCESSES}
    ids = watched.submit(3, priority="normal")
    for job_id in ids:
        wait_until(lambda job_id=job_id: watched.state(job_id) == "succeeded", within_s=LIMIT_S, what="the job")  # type: ignore[misc]  # bound here
    httpx.post(
        f"{watched.cluster.url}/v1/jobs", json={"kind": "embedding", "model": "nobody", "input": "x"}, trust_env=False
    )
    after = {name: watched.scrape(name) for name in PROCESSES}

    def moved(process: str, name: str, **labels: str) -> float:
        return after[process].value(name, **labels) - before[process].value(name, **labels)

    assert moved("api", "ondol_jobs_accepted_total", kind="embedding", **{"class": "normal"}) == 3
    assert moved("api", "ondol_jobs_refused_total", code="model_not_found") == 1
    assert moved("api", "ondol_http_requests_total", route="/v1/jobs/batch", method="POST", status="200") == 1
    assert moved("api", "ondol_http_request_seconds_count", route="/v1/jobs/{job_id}") >= 3
    assert sum(moved(name, "ondol_jobs_rung_total", kind="embedding") for name in PROCESSES) == 3
    assert sum(moved(name, "ondol_messages_total", outcome="published") for name in PROCESSES) >= 1
    assert moved("worker0", "ondol_jobs_claimed_total", kind="embedding", queue="normal") == 3
    assert moved("worker0", "ondol_attempts_total", kind="embedding", outcome="succeeded") == 3
    assert moved("worker0", "ondol_stage_seconds_count", stage="queue_wait", work="job") == 3
    normal = {"class": "normal"}
    num_run = moved("worker0", "ondol_batch_rows_total", **normal)
    assert num_run >= 1
    assert num_run + moved("worker0", "ondol_batch_shared_rows_total", **normal) == 3, "the texts are the same"
    assert moved("worker0", "ondol_batch_tokens_total", **normal) > num_run
    assert moved("worker0", "ondol_batch_wait_seconds_count", **normal) == num_run
    assert moved("worker0", "ondol_batches_total", release="drained") >= 1
    assert moved("worker0", "ondol_batch_budget_tokens_total") >= moved("worker0", "ondol_batch_tokens_total", **normal)
    assert after["worker0"].value("ondol_warm_model_info", version="tiny:1") == 1
    assert after["worker0"].value("ondol_device_memory_used_bytes") > 0
    assert after["api"].value("ondol_workers_ready", role="infer") == 1
    assert after["api"].value("ondol_workers_ready", role="train") == 1


def test_a_call_is_counted_where_it_is_answered_and_where_it_ran(watched: Watched) -> None:
    before = watched.scrape("api"), watched.scrape("worker0")
    answer = httpx.post(
        f"{watched.cluster.url}/v1/embeddings", json={"model": "tiny", "input": SECRET}, timeout=60, trust_env=False
    ).raise_for_status()
    after = watched.scrape("api"), watched.scrape("worker0")
    calls = {"kind": "embedding", "outcome": "ok"}
    assert after[0].value("ondol_calls_total", **calls) - before[0].value("ondol_calls_total", **calls) == 1
    tokens = after[0].value("ondol_call_tokens_total") - before[0].value("ondol_call_tokens_total")
    assert tokens == answer.json()["usage"]["total_tokens"]
    stage = {"stage": "forward", "work": "call"}
    assert after[1].value("ondol_stage_seconds_count", **stage) > before[1].value("ondol_stage_seconds_count", **stage)


def test_a_path_that_nobody_serves_makes_no_series_of_its_own(watched: Watched) -> None:
    for path in (SECRET, "v1/jobs/" + SECRET):
        assert httpx.get(f"{watched.cluster.url}/{path}", trust_env=False).status_code == 404
    routes = {sample.labels["route"] for sample in watched.scrape("api").families["ondol_http_requests"].samples}
    assert {"unmatched", "/v1/jobs/{job_id}"} <= routes
    assert not any(SECRET in route for route in routes)


def test_a_killed_worker_is_a_loss_and_a_lost_redis_a_repair(
    watched: Watched, redis_server: RedisServer, tiny_version: Path
) -> None:
    watched.cluster.publish(tiny_version, "cold")  # warm nowhere: its jobs go to the worker that holds no model
    before = watched.scrape("reconciler")

    def lost() -> float:
        name, labels = "ondol_attempts_total", {"kind": "embedding", "outcome": "lost"}
        return watched.scrape("reconciler").value(name, **labels) - before.value(name, **labels)

    slow = watched.cluster.start_worker(1, faults=["--delay-us-per-token", "3000000"])
    try:
        ids = watched.submit(4, model="cold")
        wait_until(
            lambda: watched.num_messages("cpu1@", is_claimed=True) == 2,
            within_s=LIMIT_S,
            what="the slow worker to claim",
        )
    finally:
        watched.cluster.kill(slow)
    ids += watched.submit(4, model="cold")
    wait_until(
        lambda: watched.num_messages("cpu1@", is_claimed=False), within_s=LIMIT_S, what="a message to a dead worker"
    )
    redis_server.flush()
    wait_until(lambda: _repairs(watched, "reconciler", "redis_data_lost"), within_s=LIMIT_S, what="the repair")
    assert wait_until(lost, within_s=LIMIT_S, what="the loss to be counted") == 4
    for job_id in ids:
        wait_until(lambda job_id=job_id: watched.state(job_id) == "succeeded", within_s=LIMIT_S, what="the job")  # type: ignore[misc]  # bound here
    wait_until(lambda: _repairs(watched, "api", "redis_data_lost"), within_s=LIMIT_S, what="the api to say so, too")
    assert _repairs(watched, "api", "session_lapsed") >= 1


def test_logs_name_the_attempt_and_never_a_text(watched: Watched) -> None:
    [single] = watched.submit()
    wait_until(lambda: watched.state(single) == "succeeded", within_s=LIMIT_S, what="the job")
    line = _recorded(watched, single)
    assert line["attempt"] == 1 and line["kind"] == "embedding" and line["worker"].startswith("cpu0@")
    assert line["message_id"].startswith("msg_")
    several = watched.submit(5)
    for job_id in several:
        wait_until(lambda job_id=job_id: watched.state(job_id) == "succeeded", within_s=LIMIT_S, what="the job")  # type: ignore[misc]  # bound here
        line = _recorded(watched, job_id)
        assert job_id in line.get("job_ids", ()) or line["job_id"] == job_id
    for name in PROCESSES:
        assert SECRET not in watched.cluster.log_of(name)


def test_a_fine_tune_counts_its_check_its_steps_and_its_checkpoints(watched: Watched) -> None:
    before = watched.scrape("trainer0")
    with TrainingClient(watched.cluster.url) as client:
        bad = client.fine_tune(client.upload(f"text,label\n{SECRET},\n"), "bad")
        good = client.fine_tune(
            client.upload(rows_of_weather(24).replace("the", SECRET)), hyperparameters={"max_steps": 4}, seed=1
        )
        assert client.wait(bad, "failed")["error"] is not None
        client.wait(good, "succeeded")
    after = watched.scrape("trainer0")
    for name, labels, least in (
        ("ondol_checks_total", {"outcome": "failed"}, 1),
        ("ondol_checks_total", {"outcome": "passed"}, 1),
        ("ondol_attempts_total", {"kind": "fine-tune", "outcome": "succeeded"}, 1),
        ("ondol_training_steps_total", {}, 4),
        ("ondol_checkpoints_committed_total", {}, 1),
        ("ondol_checkpoint_bytes_total", {}, 1000),
        ("ondol_stage_seconds_count", {"stage": "train", "work": "job"}, 1),
    ):
        assert after.value(name, **labels) - before.value(name, **labels) >= least, name
    lines = [line for line in watched.lines("trainer0") if line.get("job_id") == good]
    assert {"trainer.started", "trainer.ended", "fine_tune.published"} <= {line["event"] for line in lines}
    assert [line for line in lines if not {"kind", "attempt", "worker", "message_id"} <= line.keys()] == []
    of_the_training = {line["attempt"] for line in lines if line["event"].startswith("trainer.")}
    assert of_the_training == {2}, "the check of its files was the first"
    assert SECRET not in watched.cluster.log_of("trainer0")


def _recorded(watched: Watched, job_id: str) -> Mapping[str, Any]:
    """The line of the worker's log that says that the job's message is recorded."""

    def find() -> Mapping[str, Any] | None:
        lines = [line for line in watched.lines("worker0") if line["event"] == "message.recorded"]
        return next((line for line in lines if job_id in json.dumps(line)), None)

    found = wait_until(find, within_s=LIMIT_S, what=f"the line of {job_id}")
    assert found is not None
    return found


def _repairs(watched: Watched, process: str, kind: str) -> float:
    return watched.scrape(process).value("ondol_repairs_total", kind=kind)
