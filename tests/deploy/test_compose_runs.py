"""What docker-compose.yml starts really runs: its commands, variables and health checks, outside of containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.composed import Composed
from tests.deploy.docker_calls import calls_of
from tests.deploy.documents import DEPLOY, README, find_block, run_shell
from tests.tiny_models import make_tiny_model
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

JOB_LIMIT_S = 120
PASSWORDS = {
    "ondol_redis_password": "p@s/s%w:d",  # whoever builds a URL has to encode it
    "ondol_database_password": "p@s/s%w:d",
    "ondol_flower_password": "look-at-it",
}


@contextmanager
def composed(folder: Path, database_url: str) -> Iterator[Composed]:
    services = Composed(folder, profile="cpu", database_url=database_url, passwords=PASSWORDS)
    try:
        yield services
    finally:
        services.close()


def first_key(services: Composed, folder: Path) -> str:
    """The key that the pages' command prints; both pages must name the same one."""
    pages = [(README, "On a GPU host"), (DEPLOY, "One GPU host")]
    scripts = [find_block(page, heading, 1).text for page, heading in pages]
    calls = {call for script in scripts for call in calls_of(script, folder=folder, environment={}) if call.command}
    (call,) = calls
    (service,) = call.services
    return services.run(service, *call.command).strip()


def follow_client_block(folder: Path, *, services: Composed, url: str, key: str) -> str:
    """What the page's client commands print: a model is imported from where the worker sees it, a text embedded."""
    script = find_block(DEPLOY, "One GPU host", 2).text
    model = make_tiny_model(Path(services.place("worker-cpu").replaced["/import"]) / "my-model")
    values = {"http://127.0.0.1:8400": url, "...": key, "/import/my-model": str(model)}
    for there, here in values.items():
        assert script.count(there) == 1, there
        script = script.replace(there, here)
    return run_shell(script, folder=folder, environment={})


def embed(client: httpx.Client) -> list[float]:
    """The vector that a job of one text ends with."""
    accepted = client.post("/v1/jobs", json={"kind": "embedding", "model": "my-model", "input": ["a warm floor"]})
    assert accepted.status_code == 202, accepted.text
    job_id = accepted.json()["id"]

    def ended() -> bool:
        job = client.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()
        assert job["status"] not in ("failed", "cancelled"), job["error"]
        return bool(job["status"] == "succeeded")

    wait_until(ended, within_s=JOB_LIMIT_S, what="the job to succeed")
    vector: list[float] = client.get(f"/v1/jobs/{job_id}/result").json()["data"][0]["output"]
    return vector


def test_every_service_of_the_file_runs_gets_healthy_works_and_stops_as_it_says(
    tmp_path: Path, postgresql_url: str, checkout: Path
) -> None:
    with composed(tmp_path, postgresql_url) as services:
        services.bring_up()
        url = f"http://127.0.0.1:{services.place('api').environment['ONDOL_PORT']}"
        key = first_key(services, checkout)
        assert '"output"' in follow_client_block(checkout, services=services, url=url, key=key)
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            assert client.get("/v1/jobs").status_code == 401
            client.headers["authorization"] = f"Bearer {key}"
            assert len(embed(client)) == 32
        kept = [name for name, service in services.services.items() if "healthcheck" in service.fields]
        codes = {name: services.stop(name) for name in reversed(kept) if name != "redis"}
        assert not services.is_healthy("worker-cpu")
        codes["redis"] = services.stop("redis")
        assert codes == dict.fromkeys(kept, 0)


def test_a_service_with_a_bad_variable_is_noticed(tmp_path: Path) -> None:
    with composed(tmp_path, "sqlite://") as services:
        services.start("api", ONDOL_PORT="none")
        with pytest.raises(AssertionError, match="api ended with 2:\nbad setting: ONDOL_PORT"):
            services.wait_until_healthy("api")
