"""Models that are served without an import job: imported in this process and published as a job would have done.

What the job adds (its child, its limits, its answers) has tests of its own; here it would cost seconds a model.
"""

from __future__ import annotations

import json
from pathlib import Path

from models_store.store import ModelStore
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, parse_model_spec
from ondol.sql.database import Database
from ondol.sql.records import VersionRecord


def import_here(source: Path, target: Path) -> ModelSpec:
    """Write the canonical files of the model folder `source` into the new folder `target`."""
    from workers.importing.importer import import_model

    target.mkdir(parents=True)
    return import_model(source, target, convert_bin=False)


def publish_folder(folder: Path, name: str, *, store_url: str, database_url: str) -> VersionRecord:
    """Publish an imported folder as the next version of a model of the default project."""
    manifest = ModelStore(store_url).publish_folder(folder, name)
    spec = (folder / SPEC_FILE).read_bytes()
    database = Database(database_url)
    try:
        project_id = database.write(lambda uow: uow.keys.ensure_project())
        return database.write(
            lambda uow: (
                uow.models.publish(
                    project_id=project_id,
                    name=name,
                    task=parse_model_spec(spec, ref=name).task,
                    manifest_digest=manifest.digest,
                    size_bytes=manifest.size_bytes,
                    spec=json.loads(spec),
                    job_id=None,
                    attempt=None,
                    lineage={},
                ).version
            )
        )
    finally:
        database.close()
