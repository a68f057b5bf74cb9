"""A look at the blobs of an api's store, forms as clients send them, and jobs that name files."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

import httpx

from ondol.contract.ids import new_job_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from ondol.sql.records import NewJob
from tests.http.api_process import ApiProcess, Member

BOUNDARY = "frontier"
TABLE = b"text,label\nthe kettle is warm,good\n"


class StoreFolder:
    """The folder of blobs; names that were there at the beginning are not counted."""

    def __init__(self, api: ApiProcess) -> None:
        self.path = Path(api.store_url.removeprefix("file://")) / "files"
        self._known = self._names()

    def new_names(self) -> set[str]:
        """What came since."""
        return self._names() - self._known

    def _names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()


def upload(member: Member, content: bytes = TABLE, name: str = "t.csv", **fields: str) -> httpx.Response:
    """The answer to an upload."""
    return member.http.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune", **fields})


def uploaded_id(member: Member, content: bytes = TABLE, name: str = "t.csv", **fields: str) -> str:
    """The id of a file that was taken."""
    answer = upload(member, content, name, **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def part(name: str, value: bytes, *, filename: str | None = None) -> bytes:
    """One part of a form."""
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def form_type() -> dict[str, str]:
    """The header that goes with such a form."""
    return {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def begin_upload(member: Member, content_length: int) -> http.client.HTTPConnection:
    """A connection on which the headers of an upload were sent, and nothing of its body."""
    connection = http.client.HTTPConnection("127.0.0.1", member.api.port, timeout=30)
    connection.putrequest("POST", "/v1/files")
    for name, value in form_type().items():
        connection.putheader(name, value)
    connection.putheader("authorization", f"Bearer {member.secret}")
    connection.putheader("content-length", str(content_length))
    connection.endheaders()
    return connection


def fine_tune_on(project_id: str, **files: str) -> NewJob:
    """A fine-tune job that names files."""
    options: dict[str, Any] = {"output_name": "sentiment", **files}
    return NewJob(
        id=new_job_id(),
        project_id=project_id,
        kind=JobKind.FINE_TUNE,
        priority=Priority.BULK,
        payload=b"null",
        options=options,
        num_inputs=1,
        estimated_tokens=0,
        model_ref="tiny:1",
    )
