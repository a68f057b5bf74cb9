"""A whole Ondol of real processes on free ports, whose parts a test can kill one by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil

from models_store.store import ModelStore
from ondol.contract.model_spec import SPEC_FILE, parse_model_spec
from ondol.control.administration import upgrade_database
from ondol.control.host import free_port
from ondol.sql.database import Database
from ondol.sql.records import SessionRecord, VersionRecord
from ondol.sql.sessions import INFER, TRAIN
from tests.waiting import answers_well, wait_until

REPOSITORY = Path(__file__).resolve().parents[1]
START_LIMIT_S = 60
STOP_LIMIT_S = 30


class Cluster:
    """Api, workers and reconciler over a given Redis and database. `close()` ends everything that it started."""

    def __init__(
        self, folder: Path, *, database_url: str, redis_url: str, settings: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.database_url = database_url
        upgrade_database(database_url)
        self.database = Database(database_url)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ONDOL_")},
            "PYTHONPATH": str(REPOSITORY),
            "ONDOL_DATA_DIR": str(folder / "data"),
            "ONDOL_DATABASE_URL": database_url,
            "ONDOL_REDIS_URL": redis_url,
            "ONDOL_PORT": str(self.port),
            "ONDOL_AUTH": "off",
            "HF_HUB_OFFLINE": "1",
            **(settings or {}),
        }
        self.launcher: Sequence[str] = ()
        """Arguments of Python that stand before those of each program, as in `-m tests.outages.without_override`."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[Sequence[str], dict[str, str]]] = {}

    def start_api(self) -> None:
        """Start the api and wait until it is ready."""
        self._start("api", ["-m", "api.main"])
        wait_until(self._is_ready, within_s=START_LIMIT_S, what="the api to be ready")

    def start_reconciler(self, name: str = "reconciler") -> None:
        """Start a reconciler."""
        self._start(name, ["-m", "ondol.control.reconciler_main"])

    def start_intake(self, name: str = "intake", **settings: str) -> None:
        """Start an intake and wait until it takes messages; `settings` are `ONDOL_…` variables."""
        self._start(name, ["-m", "api.intake.main"], settings)
        wait_until(lambda: "intake.up" in self.log_of(name), within_s=START_LIMIT_S, what=f"{name} to be up")

    def start_worker(
        self, number: int = 0, *, faults: Sequence[str] | None = None, cores: str = "0", waits: bool = True
    ) -> str:
        """Start a worker (with the tests' device program when `faults` is given) and wait for its session."""
        name = f"worker{number}"
        argv = ["-m", "workers.main"] if faults is None else ["-m", "tests.faulty_worker", *faults]
        self._start(name, argv, {"ONDOL_DEVICE": f"cpu:{number}", "ONDOL_CORES": cores})
        if waits:
            prefix = f"cpu{number}@"
            wait_until(
                lambda: self._num_ready(prefix) == 1, within_s=START_LIMIT_S, what=f"worker {number} to be ready"
            )
        return name

    def start_trainer(
        self, number: int = 0, *, cores: str = "1", settings: dict[str, str] | None = None, waits: bool = True
    ) -> str:
        """Start a trainer node and wait for its session."""
        name = f"trainer{number}"
        extra = {"ONDOL_DEVICE": f"cpu:{number}", "ONDOL_CORES": cores, **(settings or {})}
        self._start(name, ["-m", "workers.training.main"], extra)
        if waits:
            self.wait_for_trainer()
        return name

    def start_flower(self) -> str:
        """Start Flower on a free port and wait until it says where it is; its address."""
        file = self.folder / "data" / "run" / "flower.url"
        self._start("flower", ["-m", "ondol.control.flower_main"], {"ONDOL_FLOWER_PORT": "0"})
        wait_until(file.exists, within_s=START_LIMIT_S, what="Flower to listen")
        return file.read_text(encoding="utf-8").strip()

    def wait_for_workers(self, num: int) -> None:
        """Wait until so many sessions are ready."""
        wait_until(lambda: self._num_ready() >= num, within_s=START_LIMIT_S, what=f"{num} ready workers")

    def wait_for_trainer(self) -> None:
        """Wait until a trainer node is ready."""
        wait_until(
            lambda: any(s.role == TRAIN and s.is_ready for s in self._sessions()),
            within_s=START_LIMIT_S,
            what="a ready trainer node",
        )

    def restart(self, name: str, **once: str) -> None:
        """Start a part again with the command it had; it must have ended. `once`: variables for this life alone."""
        argv, extra = self._commands[name]
        self._start(name, argv, extra | once)
        self._commands[name] = argv, extra

    def run_beside(self, name: str, *, until: str, within_s: float) -> tuple[int | None, str]:
        """Start the command of a part that runs once more, and end it by SIGKILL when it has written `until`.

        Its own exit code (None: it was ended), and what it has written.
        """
        argv, extra = self._commands[name]
        path = self.folder / f"{name}-beside-{time.monotonic_ns()}.log"
        with path.open("wb") as log:
            beside = self._spawn(argv, extra, log)
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: beside.poll() is not None or until in path.read_text(errors="replace"),
                within_s=within_s,
                what=f"{name} to run twice or to give up",
            )
        code = beside.poll()
        beside.kill()
        beside.wait(STOP_LIMIT_S)
        return code, path.read_text(errors="replace")

    def kill(self, name: str) -> None:
        """SIGKILL one process and wait until it is gone."""
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_LIMIT_S)

    def device_pid(self, name: str) -> int:
        """The device process of a worker; waits until there is one."""
        parent = psutil.Process(self.processes[name].pid)

        def find() -> int | None:
            for child in parent.children():
                with contextlib.suppress(psutil.Error):
                    if "--batch-tokens" in child.cmdline():
                        return int(child.pid)
            return None

        found = wait_until(find, within_s=START_LIMIT_S, what=f"the device process of {name}")
        assert found is not None
        return found

    def terminate(self, name: str) -> int:
        """SIGTERM one process; its exit code."""
        process = self.processes[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(STOP_LIMIT_S)

    def publish(self, folder: Path, name: str) -> VersionRecord:
        """Publish an imported folder as a model of the default project."""
        store = ModelStore(f"file://{self.folder / 'data' / 'store'}")
        manifest = store.publish_folder(folder, name)
        spec = parse_model_spec((folder / SPEC_FILE).read_bytes(), ref=name)
        project_id = self.database.write(lambda uow: uow.keys.ensure_project())
        return self.database.write(
            lambda uow: (
                uow.models.publish(
                    project_id=project_id,
                    name=name,
                    task=spec.task,
                    manifest_digest=manifest.digest,
                    size_bytes=manifest.size_bytes,
                    spec=json.loads((folder / SPEC_FILE).read_bytes()),
                    job_id=None,
                    attempt=None,
                    lineage={},
                ).version
            )
        )

    def log_of(self, name: str) -> str:
        """What the process has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End everything, workers first."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_LIMIT_S)
                raise AssertionError(f"{process.args!r} did not stop on SIGTERM") from None
        self.database.close()

    def _num_ready(self, prefix: str = "") -> int:
        for name, process in self.processes.items():
            if process.poll() not in (None, 0, -signal.SIGKILL):
                raise AssertionError(f"{name} ended with {process.returncode}:\n{self.log_of(name)[-3000:]}")
        ready = (one.worker for one in self._sessions() if one.is_ready and one.role == INFER)
        return sum(worker.startswith(prefix) for worker in ready)

    def _sessions(self) -> list[SessionRecord]:
        return self.database.read(lambda uow: uow.sessions.open_sessions())

    def _start(self, name: str, argv: Sequence[str], extra: dict[str, str] | None = None) -> None:
        self._commands[name] = (argv, extra or {})
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = self._spawn(argv, extra or {}, log)

    def _spawn(self, argv: Sequence[str], extra: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *self.launcher, *argv],
            env={**self.environment, **extra},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def _is_ready(self) -> bool:
        process = self.processes["api"]
        if process.poll() is not None:
            raise AssertionError(f"the api ended with {process.returncode}:\n{self.log_of('api')[-2000:]}")
        return answers_well(self.port, "/readyz")


@contextlib.contextmanager
def running_cluster(
    folder: Path, *, database_url: str, redis_url: str, settings: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """A cluster that is closed at the end of the block; nothing is started yet."""
    cluster = Cluster(folder, database_url=database_url, redis_url=redis_url, settings=settings)
    try:
        yield cluster
    finally:
        cluster.close()
