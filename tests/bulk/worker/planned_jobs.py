"""A database, a store and a worker's planner, and jobs whose inputs are files: what a test needs to plan one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models_store.file_blobs import FileBlobs
from models_store.input_blobs import InputBlobs
from ondol.contract.ids import new_id, new_job_id
from ondol.contract.kinds import JobKind
from ondol.contract.model_spec import ModelSpec, dump_model_spec
from ondol.contract.states import Priority
from ondol.sql.database import Database
from ondol.sql.files import NewFile
from ondol.sql.records import ClaimedJob, NewJob
from tests.job_fixtures import open_database, open_session, project_of, ring_and_claim
from workers.sharding.planner import ShardPlanner

MAX_TOKENS = 1_000
_SIZES: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "vocab_size": 99, "num_parameters": 1, "max_positions": 64}


@dataclass(frozen=True, slots=True)
class PlanningHouse:
    """One project with a model of which only the spec matters."""

    database: Database
    store_url: str
    project_id: str
    session_id: str
    version_id: str
    files: FileBlobs
    inputs: InputBlobs
    planner: ShardPlanner
    staging: Path

    def upload(self, filename: str, content: str | bytes) -> str:
        """A file of the project; its id."""
        file_id = new_id("file")
        writer = self.files.create(file_id)
        writer.write(content.encode() if isinstance(content, str) else content)
        writer.commit()
        new = NewFile(file_id, self.project_id, filename, "batch", writer.num_bytes, writer.sha256)
        self.database.write(lambda uow: uow.files.add(new))
        return file_id

    def submit(self, file_id: str, *, kind: JobKind = JobKind.EMBEDDING, payload: object = None) -> str:
        """An unplanned job on the file; its id."""
        job = NewJob(
            id=new_job_id(),
            project_id=self.project_id,
            kind=kind,
            priority=Priority.BULK,
            payload=json.dumps({"columns": None} if payload is None else payload).encode(),
            options={},
            num_inputs=0,
            estimated_tokens=100,
            version_id=self.version_id,
            model_ref="tiny:1",
            input_file_id=file_id,
        )
        self.database.write(lambda uow: uow.jobs.add_all([job]))
        return job.id

    def claim(self) -> list[ClaimedJob]:
        """What the worker is given next."""
        return ring_and_claim(self.database, self.session_id)

    def claim_one(self, file_id: str, **fields: Any) -> ClaimedJob:
        """A job on the file, claimed to be planned."""
        job_id = self.submit(file_id, **fields)
        [claimed] = self.claim()
        assert (claimed.id, claimed.input_file_id) == (job_id, file_id)
        return claimed

    def stored(self) -> list[str]:
        """Paths of the blobs of inputs."""
        root = Path(self.store_url.removeprefix("file://")) / "inputs"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def open_house(folder: Path, database_url: str) -> PlanningHouse:
    """Everything empty, on this folder and database."""
    database = open_database(database_url)
    project_id = project_of(database)
    spec = ModelSpec(architecture="BertModel", model_type="bert", max_length=64, dimensions=8, **_SIZES)
    version = database.write(
        lambda uow: (
            uow.models.publish(
                project_id=project_id,
                name="tiny",
                task="embedding",
                manifest_digest="0" * 64,
                size_bytes=1,
                spec=json.loads(dump_model_spec(spec)),
                job_id=None,
                attempt=None,
                lineage={},
            ).version
        )
    )
    store_url = f"file://{folder / 'store'}"
    files, inputs, staging = FileBlobs(store_url), InputBlobs(store_url), folder / "planning"
    planner = ShardPlanner(database=database, files=files, inputs=inputs, staging=staging, max_tokens=MAX_TOKENS)
    session_id = open_session(database, lease_s=600)
    return PlanningHouse(database, store_url, project_id, session_id, version.id, files, inputs, planner, staging)
