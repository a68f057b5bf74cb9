"""From a checked job to the row that is recorded."""

from __future__ import annotations

from api.auth import Caller
from api.model_lookup import Served
from ondol.contract.ids import new_job_id
from ondol.contract.jobs import ParsedJob
from ondol.sql.records import NewJob


def new_job(job: ParsedJob, served: Served | None, caller: Caller, *, estimated_tokens: int = 0) -> NewJob:
    """The job of the caller's project, for the version that is served, if it has one."""
    request = job.request
    return NewJob(
        id=new_job_id(),
        project_id=caller.project_id,
        kind=request.kind,
        priority=request.priority,
        payload=job.payload,
        options=job.options,
        num_inputs=job.num_inputs,
        estimated_tokens=estimated_tokens,
        version_id=served.version.id if served else None,
        model_ref=served.version.ref if served else None,
        metadata=request.metadata,
        run_after=request.not_before,
        deadline_s=request.deadline_s,
        webhook=request.webhook,
    )
