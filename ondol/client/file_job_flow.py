"""The flow behind jobs whose inputs are the rows of a file: upload it if it is a local one, then submit."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ondol.client.bulk_flow import FILE_LIFE_S
from ondol.client.errors import OndolAPIError
from ondol.client.file_flows import delete_file, put_file
from ondol.client.file_transfer import FileUpload
from ondol.client.flow import INTERRUPTIONS, Flow
from ondol.client.job_flows import submit_job
from ondol.client.records import JobFields, JobRequest
from ondol.client.retry import RetryPolicy
from ondol.contract.errors import OndolError

PURPOSE = "user_data"
"""Of files that hold inputs: they may be called anything."""
_FILE_ID = re.compile(r"file_[0-9a-z]{26}")


def submit_file_job(
    request: JobRequest, source: str | Path | None, policy: RetryPolicy, *, idempotency_key: str | None = None
) -> Flow[JobFields]:
    """The accepted job on the file `source`: an id, a local path that is uploaded first, or None for a job without.

    When the job is refused, no uploaded file is left behind. A repeat with the same key and a path is another request,
    since the file has another id.
    """
    if source is None or (isinstance(source, str) and _FILE_ID.fullmatch(source)):
        whole = replace(request, input_file=source)
        return (yield from submit_job(whole, policy, idempotency_key=idempotency_key))
    uploaded = yield from put_file(FileUpload(source, PURPOSE, expires_after_s=FILE_LIFE_S), policy)
    try:
        whole = replace(request, input_file=uploaded.id)
        return (yield from submit_job(whole, policy, idempotency_key=idempotency_key))
    except (OndolAPIError, *INTERRUPTIONS):
        with suppress(OndolError):  # the first error is the one to report; the file expires
            yield from delete_file(uploaded.id, replace(policy, max_retries=0))
        raise
