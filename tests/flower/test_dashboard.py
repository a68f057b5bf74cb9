"""What people see in Flower, what they do not see, and what they cannot do there."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest

from tests.flower.browser import open_browser, text_of_page, wait_for
from tests.flower.conftest import SECRETS, Watched, message_of
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

PAGES = ("/", "/workers", "/workers?json=1", "/tasks", "/broker", "/metrics", "/static/js/flower.js", "/nowhere")
API = ("/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length", "/api/task/result/x", "/api/task/info/x")


def test_nodes_and_tasks_have_names_job_ids_and_true_run_times(watched: Watched) -> None:
    embedding = watched.wait_for_task(message_of(watched.embedding), "SUCCESS")
    assert embedding["name"] == "ondol.embedding"
    assert embedding["kwargs"] == f"jobs={watched.embedding['id']}"
    assert embedding["worker"].startswith("cpu0@")
    took = watched.embedding["finished_at"] - watched.embedding["started_at"]
    assert embedding["runtime"] >= took * 0.9

    fine_tune = watched.wait_for_task(message_of(watched.fine_tune), "STARTED")
    assert fine_tune["name"] == "ondol.fine-tune"
    assert fine_tune["kwargs"] == f"jobs={watched.fine_tune['id']}"
    assert fine_tune["worker"].startswith("train-cpu0@")
    assert all(task["name"] != "ondol.run" for task in watched.get("/api/tasks").json().values())
    assert watched.get("/api/workers?status=1").json() == {embedding["worker"]: True, fine_tune["worker"]: True}


def test_a_job_leads_to_its_task_and_back(watched: Watched) -> None:
    watched.wait_for_task(message_of(watched.embedding), "SUCCESS")
    assert watched.embedding["flower_url"].startswith(watched.url)
    page = watched.get(watched.embedding["flower_url"].removeprefix(watched.url)).raise_for_status().text
    assert f'href="/job/{watched.embedding["id"]}"' in page
    public = watched.get(f"/job/{watched.embedding['id']}")
    assert public.status_code == 404, "no `ondol up` here left an address"
    assert "ONDOL_PUBLIC_URL" in public.text
    (watched.cluster.folder / "data" / "run" / "api.url").write_text(watched.cluster.url)
    back = watched.get(f"/job/{watched.embedding['id']}")
    assert back.headers["location"] == f"{watched.cluster.url}/v1/jobs/{watched.embedding['id']}"
    forth = httpx.get(f"{watched.cluster.url}/flower", trust_env=False)
    assert (forth.status_code, forth.headers["location"]) == (307, watched.url)


def test_nothing_is_answered_without_the_password(watched: Watched) -> None:
    wrong = [
        {},
        {"authorization": "Bearer x"},
        {"authorization": "Basic ***"},
        *(
            {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}
            for text in ("ondol:wrong", "온돌:x", "ondol")
        ),
    ]
    with httpx.Client(base_url=watched.url, timeout=30, trust_env=False) as client:
        for path in (*PAGES, *API):
            assert client.get(path).status_code == 401, path
        for headers in wrong:
            refused = client.get("/api/tasks", headers=headers)
            assert refused.status_code == 401, headers
            assert refused.headers["www-authenticate"].startswith("Basic")
            assert client.post("/api/task/revoke/x", headers=headers).status_code == 401, headers
        assert client.get("/healthcheck").text == "OK"
    assert (watched.cluster.folder / "data" / "run" / "flower.password").stat().st_mode & 0o777 == 0o600


def test_it_only_shows(watched: Watched) -> None:
    node, task = watched.embedding["worker"], message_of(watched.fine_tune)
    for path in (
        f"/api/worker/shutdown/{node}",
        f"/api/worker/pool/restart/{node}",
        f"/api/worker/pool/grow/{node}",
        f"/api/worker/queue/cancel-consumer/{node}",
        f"/api/task/revoke/{task}?terminate=1",
        f"/api/task/abort/{task}",
        "/api/task/send-task/ondol.run",
        "/api/task/async-apply/ondol.run",
    ):
        assert watched.request("POST", path).status_code == 403, path


def test_no_text_and_no_password_is_anywhere(watched: Watched) -> None:
    broker_password = watched.cluster.environment["ONDOL_REDIS_URL"].split(":")[2].split("@")[0]
    tasks = [message_of(job) for job in (watched.embedding, watched.failed, watched.fine_tune)]
    for task in tasks:
        wait_until(lambda task=task: task in watched.get("/api/tasks").text, within_s=30, what=f"{task} in Flower")  # type: ignore[misc]
    wait_until(
        lambda: watched.foreign_task in watched.get("/api/tasks").text, within_s=30, what="the foreign task in Flower"
    )
    nodes = [watched.embedding["worker"], watched.fine_tune["worker"]]
    rows = "draw=1&start=0&length=100&search[value]=&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"
    paths = [*PAGES, *API, "/api/workers?refresh=1", f"/tasks/datatable?{rows}"]
    paths += [f"/{kind}/{task}" for task in (*tasks, watched.foreign_task) for kind in ("task", "api/task/info")]
    paths += [f"/worker/{node}" for node in nodes] + [f"/api/workers?refresh=1&workername={node}" for node in nodes]
    for path in paths:
        text = watched.get(path).text
        found = [word for word in (*SECRETS, broker_password, watched.password) if word in text]
        assert not found, (path, found)
    assert "(not shown)" in watched.get(f"/task/{watched.foreign_task}").text
    assert watched.get(f"/worker/{nodes[1]}").status_code == 200


def test_its_metrics_are_its_own(watched: Watched) -> None:
    watched.wait_for_task(message_of(watched.embedding), "SUCCESS")
    theirs = watched.get("/metrics").text
    assert 'task="ondol.embedding"' in theirs
    assert "flower_events_total" in theirs
    assert "ondol_" not in theirs


def test_a_person_sees_nodes_and_tasks_in_a_browser(watched: Watched, tmp_path: Path) -> None:
    watched.wait_for_task(message_of(watched.embedding), "SUCCESS")
    with open_browser() as browser:
        browser.get(watched.url.replace("://", "://ondol:wrong@"))
        assert not text_of_page(browser), "the browser asks for another password and shows nothing"
        assert "Flower" not in browser.page_source

        browser.get(watched.url.replace("://", f"://ondol:{watched.password}@"))
        wait_for(browser, *(f"//a[@title='{job['worker']}']" for job in (watched.embedding, watched.fine_tune)))
        browser.get(f"{watched.url}/tasks")
        wait_for(
            browser,
            row_of("ondol.embedding", "SUCCESS", watched.embedding["id"]),
            row_of("ondol.fine-tune", "STARTED", watched.fine_tune["id"]),
        )
        browser.save_screenshot(str(tmp_path / "flower-tasks.png"))

        browser.get(watched.fine_tune["flower_url"])
        badge, job = wait_for(browser, "//dd[contains(., 'STARTED')]", f"//a[contains(., '{watched.fine_tune['id']}')]")
        assert badge.is_displayed()
        assert job.is_displayed()
        browser.save_screenshot(str(tmp_path / "flower-fine-tune.png"))
        assert not [word for word in SECRETS if word in browser.page_source]


def row_of(*texts: str) -> str:
    """The XPath of a table's row that holds all of `texts`."""
    conditions = " and ".join(f"contains(., '{text}')" for text in texts)
    return f"//tr[{conditions}]"
