"""What docker-compose.yml starts really runs: its commands, variables and health checks, outside of containers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from models_store.store import ModelStore
from ondol.contract.model_spec import SPEC_FILE, parse_model_spec
from ondol.sql.database import Database
from tests.deploy.composed import Composed
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


def publish(folder: Path, *, store: Path, database_url: str) -> None:
    """Put a tiny model into the store, as its import would."""
    manifest = ModelStore(f"file://{store}").publish_folder(folder, "tiny")
    spec = (folder / SPEC_FILE).read_bytes()
    database = Database(database_url)
    project_id = database.write(lambda uow: uow.keys.ensure_project())
    database.write(
        lambda uow: uow.models.publish(
            project_id=project_id,
            name="tiny",
            task=parse_model_spec(spec, ref="tiny").task,
            manifest_digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            spec=json.loads(spec),
            job_id=None,
            attempt=None,
            lineage={},
        )
    )
    database.close()


def embed(client: httpx.Client) -> list[float]:
    """The vector that a job of one text ends with."""
    accepted = client.post("/v1/jobs", json={"kind": "embedding", "model": "tiny", "input": ["a warm floor"]})
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
    tmp_path: Path, postgresql_url: str, tiny_version: Path
) -> None:
    with composed(tmp_path, postgresql_url) as services:
        services.bring_up()
        publish(tiny_version, store=services.store, database_url=postgresql_url)
        port = services.place("api").environment["ONDOL_PORT"]
        key = json.loads(services.run("api", "ondol", "keys", "create", "--name", "first", "--json"))["key"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
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
