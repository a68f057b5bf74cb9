"""What a claimed job is to run: the inputs of a whole job or of a shard, wherever its payload stands."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from models_store.input_blobs import InputBlobs
from ondol.contract.errors import OndolError
from ondol.contract.jobs import Inputs
from ondol.sql.records import ClaimedJob


@dataclass(frozen=True, slots=True)
class Payload:
    """The inputs of one job or shard, `ids` one an input where the caller named them.

    `errors`: inputs that the planner refused; what stands in their place is never run.
    """

    inputs: Inputs
    ids: list[Any] | None = None
    errors: dict[int, OndolError] = field(default_factory=dict)


def read_payload(job: ClaimedJob, blobs: InputBlobs) -> Payload:
    """The payload, from SQL or from the store; ChecksumMismatch, StoreUnavailable."""
    data = job.payload if job.input_blob is None else blobs.read(job.input_blob)
    found = json.loads(data)
    if isinstance(found, list):
        return Payload(found)
    errors = found.get("errors", {})
    return Payload(
        found["inputs"],
        found.get("ids"),
        {int(place): OndolError(error["message"], code=error["code"]) for place, error in errors.items()},
    )
