"""Nothing that a person wrote passes into the dashboard's memory, whoever announces it and however."""

from __future__ import annotations

from typing import Any

import pytest

from ondol.broker.shown_jobs import jobs_shown, show_jobs
from ondol.control.flower.without_texts import HIDDEN, event_without_texts, report_without_texts

pytestmark = pytest.mark.unit

TEXT = "my kumquat diary"
JOB = "job_01k9zv6t0m3x5r7c2b8d4f6g1h"
TASK = {"type": "task-received", "hostname": "cpu0@host", "uuid": "msg_1", "name": "ondol.embedding", "timestamp": 1.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"args": f"('{TEXT}',)", "kwargs": f"{{'input': '{TEXT}'}}"},
        {"kwargs": f"jobs={JOB}, {TEXT}"},
        {"kwargs": f"jobs={JOB}\n{TEXT}"},
        {"kwargs": {"jobs": [[TEXT, 1]], "input": TEXT}},
        {"kwargs": {"jobs": TEXT}},
        {"result": repr(TEXT)},
        {"exception": f"ValueError('{TEXT}')", "traceback": f"...\nValueError: {TEXT}"},
        {"exception": TEXT},
        {"progress": TEXT, "eta": TEXT, "expires": TEXT},
    ],
)
def test_an_event_keeps_no_text(fields: dict[str, Any]) -> None:
    kept = event_without_texts(TASK | fields)
    assert kept is not None
    assert "kumquat" not in str(kept)
    assert {name: kept[name] for name in TASK} == TASK


def test_an_event_keeps_job_ids_and_what_kind_of_error_it_was() -> None:
    kept = event_without_texts(TASK | {"args": "()", "kwargs": f"jobs={JOB}", "exception": "ValueError('x')"})
    assert kept is not None
    assert (kept["args"], kept["kwargs"]) == ("", f"jobs={JOB}")
    assert kept["exception"].startswith("ValueError ")


def test_a_senders_event_does_not_rename_the_task() -> None:
    kept = event_without_texts(TASK | {"type": "task-sent", "name": "ondol.run"})
    assert kept is not None
    assert "name" not in kept


def test_what_is_no_event_is_not_remembered() -> None:
    assert event_without_texts({"hostname": "x"}) is None
    assert event_without_texts({"type": "task-sent", "hostname": "x"}) is None
    assert event_without_texts({"type": "worker-heartbeat", "hostname": "x", "active": 2}) is not None


@pytest.mark.parametrize("method", ["active", "reserved", "scheduled"])
def test_a_nodes_report_keeps_no_text(method: str) -> None:
    foreign = {"id": "t1", "name": "ondol.embedding", "args": [TEXT], "kwargs": {"input": [TEXT]}, "note": TEXT}
    ours = {"id": "msg_1", "name": "ondol.embedding", "args": [], "kwargs": {"v": 1, "jobs": [[JOB, 0]]}}
    answer: list[dict[str, Any]] = [foreign, ours]
    if method == "scheduled":
        answer = [{"eta": None, "priority": 6, "request": task} for task in answer]
    kept = report_without_texts(method, answer)
    assert "kumquat" not in str(kept)
    first, second = (one.get("request", one) for one in kept)
    assert first["kwargs"] == HIDDEN
    assert second["kwargs"] == f"jobs={JOB}"


def test_jobs_are_read_back_as_they_were_shown() -> None:
    ids = [f"job_{number:026d}" for number in range(100)]
    assert jobs_shown(show_jobs(ids[:1])) == tuple(ids[:1])
    assert jobs_shown(show_jobs(ids[:3])) == tuple(ids[:3])
    shown = show_jobs(ids)
    assert jobs_shown(shown) == tuple(ids[:64])
    assert shown.endswith(" and 36 more")
