"""A real api process with its database and model, and people who may call it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from pydantic import TypeAdapter

from ondol.contract.ids import new_id
from ondol.contract.model_spec import ModelSpec
from ondol.control.host import free_port
from ondol.control.launch import launch_command
from ondol.sql import migrate
from ondol.sql.database import Database
from ondol.sql.records import VersionRecord
from ondol.sql.tables import idempotency_keys, job_inputs, jobs
from tests.waiting import answers_well, wait_until

START_LIMIT_S = 60
STOP_LIMIT_S = 15
ROOT = Path(__file__).parents[2]
SPEC = ModelSpec(
    architecture="BertModel",
    model_type="bert",
    hidden_size=8,
    num_layers=2,
    vocab_size=1000,
    num_parameters=10_000,
    max_length=16,
    max_positions=16,
    dimensions=8,
    prompts={"query": "query: "},
)
MODEL = "tiny"
MOODS = replace(SPEC, task="text-classification", labels=("sad", "calm", "glad"))
NAMES = replace(SPEC, task="token-classification", labels=("O", "NAME"))

_names = itertools.count(1)


class ApiProcess:
    """`python -m api.main` on a database and a Redis; `database` is the tests' own access to the same database."""

    def __init__(self, folder: Path, *, database_url: str, redis_url: str, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store_url = f"file://{folder / 'store'}"
        self._log = folder / "api.log"
        self._folder = folder
        migrate.upgrade(database_url)
        self.database = Database(database_url)
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("ONDOL_")} | {
            "ONDOL_DATA_DIR": str(folder),
            "ONDOL_DATABASE_URL": database_url,
            "ONDOL_REDIS_URL": redis_url,
            "ONDOL_STORE_URL": self.store_url,
            "ONDOL_PORT": str(self.port),
            "ONDOL_LOG_FORMAT": "json",
            "PYTHONPATH": str(ROOT),
            **{f"ONDOL_{name.upper()}": value for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running api."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, until_ready: bool = True) -> None:
        """Start it and wait until it is ready, or at least alive."""
        command = launch_command([sys.executable, "-m", "api.main"], parent=str(os.getpid()), death_signal="KILL")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, env=self._env, stdout=log, stderr=log)
        path = "/readyz" if until_ready else "/livez"
        wait_until(lambda: self._answers(path), within_s=START_LIMIT_S, what=f"the api on port {self.port}")

    def stop(self) -> int:
        """Send SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STOP_LIMIT_S)
        self._process = None
        return code

    def kill(self) -> None:
        """End it by SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_LIMIT_S)
        self._process = None

    def close(self) -> None:
        """End what still runs and let go of the database."""
        if self._process is not None:
            self.stop()
        self.database.close()

    def logs(self) -> str:
        """What the process wrote."""
        return self._log.read_text()

    def member(self, *, is_admin: bool = False, with_model: bool = True) -> Member:
        """Somebody with a project and a key of their own, and a tiny model in the project."""
        project = f"project-{next(_names)}"
        key, secret = self.database.write(lambda uow: uow.keys.create(project=project, name="test", is_admin=is_admin))
        if with_model:
            self.publish(key.project_id)
        return Member(self, key.project_id, secret)

    def publish(self, project_id: str, name: str = MODEL, spec: ModelSpec = SPEC) -> VersionRecord:
        """The next version of a tiny model in the project."""
        stored = TypeAdapter(ModelSpec).dump_python(spec, mode="json")
        return self.database.write(
            lambda uow: (
                uow.models.publish(
                    project_id=project_id,
                    name=name,
                    task=spec.task,
                    manifest_digest=new_id("digest"),
                    size_bytes=1,
                    spec=stored,
                    job_id=None,
                    attempt=None,
                    lineage={},
                ).version
            )
        )

    def _answers(self, path: str) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the api ended with {self._process.returncode}:\n{self.logs()}")
        return answers_well(self.port, path)


class Member:
    """A project's user: an HTTP client with its key, and a look at what the project has stored."""

    def __init__(self, api: ApiProcess, project_id: str, secret: str) -> None:
        self.api = api
        self.project_id = project_id
        self.secret = secret
        self.http = httpx.Client(
            base_url=api.url, headers={"authorization": f"Bearer {secret}"}, timeout=30, trust_env=False
        )

    def submit(self, **fields: Any) -> dict[str, Any]:
        """An accepted job."""
        answer = self.http.post("/v1/jobs", json=job_body(**fields))
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def count_rows(self) -> int:
        """Rows of jobs, inputs and Idempotency-Keys that belong to the project."""
        mine = sa.select(jobs.c.id).where(jobs.c.project_id == self.project_id)
        queries = (
            sa.select(sa.func.count()).select_from(jobs).where(jobs.c.project_id == self.project_id),
            sa.select(sa.func.count()).select_from(job_inputs).where(job_inputs.c.job_id.in_(mine)),
            sa.select(sa.func.count())
            .select_from(idempotency_keys)
            .where(idempotency_keys.c.project_id == self.project_id),
        )
        return self.api.database.read(lambda uow: sum(uow.conn.execute(q).scalar_one() for q in queries))

    def close(self) -> None:
        """Close the client."""
        self.http.close()


def job_body(**fields: Any) -> dict[str, Any]:
    """A good embedding job, changed by `fields`; a field of ... is left out."""
    body = {"kind": "embedding", "model": MODEL, "input": ["one text"], **fields}
    return {name: value for name, value in body.items() if value is not ...}
