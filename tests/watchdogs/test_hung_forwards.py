"""A forward pass that never ends: the device process is replaced, and only the guilty text fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ondol.contract.model_ref import ModelRef
from tests.cluster import Cluster, running_cluster
from tests.job_fixtures import new_job
from tests.servers import RedisServer
from tests.waiting import wait_until
from workers.forward_limits import ForwardLimits

HUNG = "queue"
LEAST_S = 1.0


@pytest.mark.chaos
@pytest.mark.integration
def test_a_hung_pass_costs_the_guilty_text_alone(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    settings = {"ONDOL_FORWARD_STALL_S": f"{LEAST_S:g}"}
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=settings) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_reconciler()
        cluster.start_worker(0, faults=["--hang-token", str(_token_of(tiny_version, HUNG))])
        assert _ended(cluster, ["warm house"]) == ["succeeded"], "the speed of the model is known now"
        device = cluster.device_pid("worker0")
        texts = ["warm house 1", f"a {HUNG} remembers", "the fire burns", "warm house 2"]
        assert _ended(cluster, texts) == ["succeeded", "failed", "succeeded", "succeeded"]
        assert cluster.device_pid("worker0") != device
        repairs = cluster.database.read(lambda uow: uow.leaders.repair_counts())
        assert repairs["forward_over_limit"] >= 3, "the batch, and the guilty text alone"


@pytest.mark.unit
def test_a_pass_is_given_what_its_model_takes() -> None:
    limits = ForwardLimits(longest_s=120, least_s=15)
    run = {"op": "run", "model": {"key": "a:float32"}, "lengths": [100, 100]}
    assert limits.limit_s(run) == 120, "nothing is known yet"
    limits.learn(run, {"op": "ran", "forward_s": 0.2, "load_s": 0.0})
    assert limits.limit_s(run) == 15
    assert limits.limit_s(run | {"lengths": [2_000]}) == pytest.approx(40), "twenty times 2,000 tokens of 1 ms"
    assert limits.limit_s(run | {"lengths": [200_000]}) == 120
    limits.learn(run, {"op": "ran", "forward_s": 0.2, "load_s": 4.0})
    assert limits.limit_s(run) == pytest.approx(55), "it may have to be loaded again"
    assert limits.limit_s(run | {"model": {"key": "b:float32"}}) == 120
    assert limits.limit_s({"op": "load", "model": {"key": "b:float32"}}) > 120


@pytest.mark.unit
def test_one_slow_pass_is_forgotten_in_time() -> None:
    limits = ForwardLimits(longest_s=1000, least_s=1)
    run = {"op": "run", "model": {"key": "a:float32"}, "lengths": [1_000]}
    limits.learn(run, {"op": "ran", "forward_s": 10.0, "load_s": 0.0})
    assert limits.limit_s(run) == pytest.approx(200)
    for _ in range(40):
        limits.learn(run, {"op": "ran", "forward_s": 0.1, "load_s": 0.0})
    assert limits.limit_s(run) < 10


def _ended(cluster: Cluster, texts: list[str]) -> list[str]:
    """The states in which jobs of these texts end."""
    project_id = cluster.database.write(lambda uow: uow.keys.ensure_project())
    version = cluster.database.read(lambda uow: uow.models.resolve(ModelRef("tiny"), project_id))
    jobs = [replace(new_job(project_id, text=text), version_id=version.id) for text in texts]
    cluster.database.write(lambda uow: uow.jobs.add_all(jobs))
    ids = [job.id for job in jobs]

    def look() -> list[str] | None:
        states = cluster.database.read(lambda uow: uow.jobs.states_of(ids))
        found = [str(states[job_id][0]) for job_id in ids]
        return found if set(found) <= {"succeeded", "failed"} else None

    found = wait_until(look, within_s=60, what="all jobs to end")
    assert found is not None
    return found


def _token_of(version: Path, word: str) -> int:
    tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(f"a {word} remembers", add_special_tokens=False).ids
    others = {i for text in ("warm house 12", "the fire burns") for i in tokenizer.encode(text).ids}
    return next(i for i in ids if i not in others)
