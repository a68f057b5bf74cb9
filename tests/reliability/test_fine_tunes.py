"""Trainer nodes die in the middle of a save or a publish, disks fill up, stores go away: one version, or none yet.

Scenarios 5, 6, 26, 27, 29, 30, 32, 43 and 45 of `docs/reliability.md`. The nodes, their checks, checkpoints and
publishes are the product's; the training child counts steps without a model, at the pace that the test sets.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from models_store.store import ModelStore
from ondol.contract.errors import ModelNotFound
from ondol.contract.model_ref import parse_model_ref
from ondol.control.administration import known_manifests, manifests_in_use
from ondol.sql.tables import attempts, models, versions
from tests.reliability.house import LIMIT_S, House
from tests.training_jobs.client import TrainingClient, rows_of_weather
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

NUM_STEPS = 12
ROWS = rows_of_weather(60)


def _hears_sigterm(pid: int) -> bool:
    """Whether Celery has taken over SIGTERM; before that it ends the process at once, as it ends any."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


class Training:
    """A house with a faulty trainer node, and the folder that tells it what goes wrong."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.client = TrainingClient(house.url)
        self.control = house.folder / "control"
        self.control.mkdir()
        self.store = house.folder / "data" / "store"

    def start_node(self, number: int = 0, *arguments: str) -> None:
        """Start a node and wait for its session."""
        name = f"trainer{number}"
        self.house.start_program(
            name,
            "tests.reliability.faulty_trainer",
            str(self.control),
            *arguments,
            ONDOL_DEVICE=f"cpu:{number}",
            ONDOL_CORES=str(number),
        )
        wait_until(
            lambda: self.house.session_of(f"train-cpu{number}@"), within_s=LIMIT_S, what=f"{name} to have a session"
        )
        wait_until(lambda: _hears_sigterm(self.house.processes[name].pid), within_s=LIMIT_S, what=f"{name} to listen")

    def tell(self, name: str, value: object = "") -> None:
        """Write a control file, whole at once."""
        partial = self.control / f".{name}"
        partial.write_text(str(value))
        partial.rename(self.control / name)

    def go_on(self) -> None:
        """Let the child take all its steps."""
        (self.control / "until").unlink(missing_ok=True)

    def begin(self, name: str, *, until: int | None, **options: Any) -> str:
        """A fine-tune that stands still behind the step `until`."""
        if until is not None:
            self.tell("until", until)
        hyper = {"max_steps": NUM_STEPS}
        job_id = self.client.fine_tune(self.client.upload(ROWS), name, hyperparameters=hyper, **options)
        if until is not None:
            self.client.wait_for_step(job_id, until)
        return job_id

    def checkpoints(self, job_id: str) -> list[tuple[int, int]]:
        """(step, attempt) of what is listed, newest first."""
        listed = self.client.http.get(f"/v1/jobs/{job_id}/checkpoints").raise_for_status().json()["data"]
        return [(found["step"], found["attempt"]) for found in listed]

    def wait_for_checkpoint(self, job_id: str, step: int) -> None:
        """Wait until the checkpoint of this step is listed."""
        wait_until(
            lambda: any(found == step for found, _ in self.checkpoints(job_id)),
            within_s=LIMIT_S,
            what=f"the checkpoint of step {step}",
        )

    def child(self) -> psutil.Process:
        """The training child of the first node; waits for it."""
        parent = psutil.Process(self.house.processes["trainer0"].pid)

        def find() -> psutil.Process | None:
            found = parent.children()
            return next((each for each in found if "tests.reliability.training_child" in each.cmdline()), None)

        child = wait_until(find, within_s=LIMIT_S, what="a training child")
        assert child is not None
        return child

    def versions_of(self, name: str) -> list[tuple[int, str, int]]:
        """(number, manifest, attempt) of each version of the model."""
        query = (
            sa.select(versions.c.number, versions.c.manifest_digest, versions.c.attempt)
            .join(models, models.c.id == versions.c.model_id)
            .where(models.c.name == name)
            .order_by(versions.c.number)
        )
        found = self.house.database.read(lambda uow: uow.conn.execute(query).all())
        return [(row.number, row.manifest_digest, row.attempt) for row in found]

    def manifests(self) -> set[str]:
        """Manifests in the store, whether SQL knows them or not."""
        return set(ModelStore(f"file://{self.store}").list_manifests())

    def alias(self, name: str) -> str | None:
        """The version to which the model's alias `production` points."""
        ref, project_id = parse_model_ref(f"{name}@production"), self.house.version.project_id
        try:
            return self.house.database.read(lambda uow: uow.models.resolve(ref, project_id)).ref
        except ModelNotFound:
            return None

    def resumed_from(self, job_id: str) -> list[int]:
        """The step from which each attempt but the first went on."""
        said = [line for line in self.client.messages(job_id) if line.startswith("training goes on from step ")]
        return [int(line.removeprefix("training goes on from step ").partition(",")[0]) for line in said]


@pytest.fixture(scope="module")
def training(sqlite_house: House) -> Iterator[Training]:
    """Api, reconciler and one trainer node."""
    sqlite_house.start_api()
    sqlite_house.start_reconciler()
    made = Training(sqlite_house)
    made.start_node()
    yield made
    made.client.http.close()


@pytest.fixture(autouse=True)
def _nothing_goes_wrong_next(training: Training) -> Iterator[None]:
    """Every test finds an empty control folder."""
    yield
    for path in training.control.iterdir():
        path.unlink()


def test_27_a_node_killed_while_it_saves_goes_on_from_the_checkpoint_before(training: Training) -> None:
    job_id = training.begin("saved", until=4)
    training.wait_for_checkpoint(job_id, 3)
    child = training.child()
    training.tell("die-in-checkpoint", 6)
    training.go_on()
    assert training.house.wait_for_end("trainer0") == -9
    wait_until(lambda: not child.is_running(), within_s=LIMIT_S, what="scenario 43: the child to end with its node")
    assert training.checkpoints(job_id) == [(3, 2)], "what was not finished is not listed"
    assert (training.store / "checkpoints" / job_id / "6-2").is_dir()
    training.house.bring_back("trainer0")
    training.client.wait(job_id, "succeeded")
    assert training.house.attempts_of(job_id) == [(1, "validated"), (2, "lost"), (3, "succeeded")]
    assert training.resumed_from(job_id) == [3]
    assert not (training.store / "checkpoints" / job_id / "6-2").exists(), "the torn one is swept away"
    assert [number for number, _, _ in training.versions_of("saved")] == [1]


def test_26_a_pause_whose_save_dies_is_kept_and_the_job_resumes(training: Training) -> None:
    job_id = training.begin("paused", until=4)
    training.wait_for_checkpoint(job_id, 3)
    training.tell("die-in-checkpoint", 4)
    assert training.client.http.post(f"/v1/jobs/{job_id}/pause").status_code == 200
    assert training.house.wait_for_end("trainer0") == -9
    assert training.checkpoints(job_id) == [(3, 2)]
    training.house.bring_back("trainer0")
    training.client.wait(job_id, "paused")
    assert training.checkpoints(job_id)[0][0] >= 3
    training.go_on()
    assert training.client.http.post(f"/v1/jobs/{job_id}/resume").status_code == 200
    training.client.wait(job_id, "succeeded")
    outcomes = [outcome for _, outcome in training.house.attempts_of(job_id)]
    assert outcomes == ["validated", "lost", "paused", "succeeded"]
    assert all(step >= 3 for step in training.resumed_from(job_id))


def test_32_a_node_killed_between_files_and_commit_publishes_one_version(training: Training) -> None:
    before = training.manifests()
    training.tell("die-before-record")
    job_id = training.begin("published", until=None, alias="production")
    assert training.house.wait_for_end("trainer0") == -9
    [orphan] = training.manifests() - before
    assert training.versions_of("published") == [] and training.alias("published") is None
    training.house.bring_back("trainer0")
    training.client.wait(job_id, "succeeded")
    assert training.versions_of("published") == [(1, orphan, 3)], "the same files: taken over, not stored again"
    assert training.manifests() - before == {orphan}
    assert training.alias("published") == "published:1"
    assert training.client.result(job_id)["model"] == "published:1"


def test_30_a_store_that_goes_away_fails_the_next_save_and_moves_nothing(training: Training) -> None:
    job_id = training.begin("unmounted", until=4, alias="production")
    training.wait_for_checkpoint(job_id, 3)
    folder = training.store / "checkpoints"
    away = folder.rename(folder.with_name("checkpoints.away"))
    folder.touch()
    try:
        training.tell("until", 5)
        training.client.wait_for_step(job_id, 5)  # training itself goes on
        training.go_on()
        error = wait_until(lambda: _last_error(training, job_id), within_s=LIMIT_S, what="the attempt to fail")
    finally:
        folder.unlink()
        away.rename(folder)
    assert error["code"] == "store_unavailable"
    assert training.alias("unmounted") is None
    training.client.wait(job_id, "succeeded")
    assert training.resumed_from(job_id)[-1] == 3
    assert training.alias("unmounted") == "unmounted:1"
    assert [number for number, _, _ in training.versions_of("unmounted")] == [1]


@pytest.mark.parametrize("is_deleted", [False, True], ids=["changed", "deleted"])
def test_45_a_data_file_that_is_not_what_was_submitted_fails_the_job_for_good(
    training: Training, is_deleted: bool
) -> None:
    file_id = training.client.upload(ROWS)
    blob = training.store / "files" / file_id
    training.house.freeze("trainer0")
    try:
        job_id = training.client.fine_tune(file_id, "changed")
        if is_deleted:
            blob.unlink()
        else:
            blob.chmod(0o600)
            blob.write_bytes(blob.read_bytes().replace(b"warm", b"cold", 1))
    finally:
        training.house.thaw("trainer0")
    job = training.client.wait(job_id, "failed")
    assert job["error"]["code"] == "input_changed"
    assert job["error"]["param"] == "options.train_file"
    assert [outcome for _, outcome in training.house.attempts_of(job_id)].count("failed") == 1
    assert training.versions_of("changed") == []


def test_29_a_full_disk_fails_the_save_then_the_publish_and_costs_nothing_once_there_is_room(
    training: Training,
) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode
    ):
        pytest.skip("this host lets nobody mount a small disk of his own")
    house = training.house
    assert house.terminate("trainer0") == 0
    small = training.store / "checkpoints", training.store / "blobs"
    training.start_node(0, "--small", *map(str, small))
    disks = [Path(f"/proc/{house.processes['trainer0'].pid}/root{folder}") for folder in small]
    try:
        job_id = training.begin("full", until=4)
        training.wait_for_checkpoint(job_id, 3)
        with _filled(disks[0]):
            training.tell("until", 7)
            error = wait_until(lambda: _last_error(training, job_id), within_s=LIMIT_S, what="the save to fail")
            assert error["code"] == "storage_full"
            assert training.checkpoints(job_id) == [(3, 2)], "the older checkpoint is kept"
        wait_until(lambda: training.resumed_from(job_id) == [3], within_s=LIMIT_S, what="the next attempt")
        with _filled(disks[1]):
            training.go_on()
            wait_until(
                lambda: training.house.attempts_of(job_id)[2:] == [(3, "failed")],
                within_s=LIMIT_S,
                what="the publish to fail",
            )
            assert _last_error(training, job_id)["code"] == "storage_full"
            assert training.versions_of("full") == []
        training.client.wait(job_id, "succeeded")
        assert [number for number, _, _ in training.versions_of("full")] == [1]
    finally:
        house.terminate("trainer0")
        training.start_node()


def test_6_a_node_that_wakes_inside_its_publish_after_its_lease_publishes_nothing(training: Training) -> None:
    house, before = training.house, training.manifests()
    training.tell("mark-attempt")  # so that the files of the two attempts differ
    training.tell("freeze-before-record")
    job_id = training.begin("zombie", until=None, alias="production")
    zombie = psutil.Process(house.processes["trainer0"].pid)
    try:
        wait_until(lambda: zombie.status() == psutil.STATUS_STOPPED, within_s=LIMIT_S, what="the node to freeze")
        [orphan] = training.manifests() - before
        training.start_node(1)
        training.client.wait(job_id, "succeeded")
        published, events = training.versions_of("zombie"), training.client.events(job_id)
        made = house.attempts_of(job_id)
        assert made[:2] == [(1, "validated"), (2, "lost")] and made[-1][1] == "succeeded"
        assert [(number, attempt) for number, _, attempt in published] == [(1, made[-1][0])]
        house.thaw("trainer0")
        wait_until(
            lambda: any(line.get("job_id") == job_id for line in house.lines_of("trainer0", "attempt.stale")),
            within_s=LIMIT_S,
            what="the zombie's publish to be refused",
        )
        assert training.versions_of("zombie") == published
        assert training.alias("zombie") == "zombie:1"
        assert training.client.events(job_id) == events, "no event and no transition of the zombie's"
        assert house.attempts_of(job_id) == made
        assert orphan not in manifests_in_use(house.database_url, grace_s=0), "left to the collection"
        assert orphan in known_manifests(house.database_url), "it is no stranger's"
        assert orphan != published[0][1]
    finally:
        house.thaw("trainer0")
        if "trainer1" in house.processes:
            house.terminate("trainer1")


def _last_error(training: Training, job_id: str) -> dict[str, Any]:
    """The error of the newest attempt that failed; empty while none has."""
    query = sa.select(attempts.c.error).where(attempts.c.job_id == job_id, attempts.c.outcome == "failed")
    found = training.house.database.read(
        lambda uow: uow.conn.execute(query.order_by(attempts.c.attempt.desc())).scalars().first()
    )
    return found or {}


class _filled:  # noqa: N801 - a context manager
    """No byte is left on the disk inside the block."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "filler"

    def __enter__(self) -> None:
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(descriptor, bytes(4096))
        except OSError:
            os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        self._file.unlink()
