"""Flows about files: upload, list, look, download, delete."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ondol.client.errors import BadAnswer, ConnectionFailed
from ondol.client.file_transfer import FormUpload, HashedSink
from ondol.client.flow import Flow, Json, Pause, Request, delete, exchange, exchange_json
from ondol.client.records import Page, parse_page
from ondol.client.retry import RetryPolicy

PAGE_FILES = 1_000
DEFAULT_PURPOSE = "fine-tune"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """An uploaded file as the server describes it; `raw` is the JSON itself."""

    id: str
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime | None
    raw: Json


def put_file(upload: FormUpload, policy: RetryPolicy) -> Flow[FileInfo]:
    """The stored file. Tried again only where the server was not even reached, so that it is never stored twice."""
    request = Request("POST", "/v1/files", upload=upload)
    once = replace(policy, max_retries=0)
    tries = 0
    while True:
        tries += 1
        try:
            info = parse_file((yield from exchange_json(request, once)))
        except ConnectionFailed as error:
            if error.was_sent:
                raise _broken_upload(upload, error) from error
            delay_s = policy.delay_after_failure(tries)
            if delay_s is None:
                raise
            yield Pause(delay_s)
        else:
            _check_digest(info, upload.sha256)
            return info


def get_file(file_id: str, policy: RetryPolicy) -> Flow[FileInfo]:
    """What the server says about one file."""
    return parse_file((yield from exchange_json(Request("GET", f"/v1/files/{file_id}"), policy)))


def list_files(policy: RetryPolicy, *, purpose: str | None, after: str | None, limit: int) -> Flow[Page]:
    """One page of files, newest first, behind the file `after`."""
    given = {"purpose": purpose, "after": after, "limit": limit}
    params = {name: value for name, value in given.items() if value is not None}
    return parse_page((yield from exchange_json(Request("GET", "/v1/files", params=params), policy)))


def delete_file(file_id: str, policy: RetryPolicy) -> Flow[None]:
    """Nothing; the file and its content are gone. StateConflict while an unfinished job needs it."""
    yield from delete(f"/v1/files/{file_id}", policy)


def get_content(file_id: str, policy: RetryPolicy) -> Flow[bytes]:
    """The whole content in memory."""
    return (yield from exchange(Request("GET", f"/v1/files/{file_id}/content"), policy)).content


def save_content(file_id: str, sink: HashedSink, policy: RetryPolicy) -> Flow[FileInfo]:
    """Bring the content to the sink; BadAnswer if it is not what was uploaded."""
    info = yield from get_file(file_id, policy)
    yield from exchange(Request("GET", f"/v1/files/{file_id}/content", sink=sink), policy)
    _check_digest(info, sink.sha256)
    return info


def page_limit(left: int | None) -> int:
    """How many files to ask for when `left` (None: all) are still wanted."""
    return PAGE_FILES if left is None else min(PAGE_FILES, left)


def parse_file(raw: Json) -> FileInfo:
    """The file in a JSON object; BadAnswer if it is none."""
    try:
        expires_at = raw.get("expires_at")
        return FileInfo(
            id=raw["id"],
            filename=raw["filename"],
            purpose=raw["purpose"],
            size_bytes=raw["bytes"],
            sha256=raw["sha256"],
            created_at=datetime.fromtimestamp(raw["created_at"], UTC),
            expires_at=None if expires_at is None else datetime.fromtimestamp(expires_at, UTC),
            raw=raw,
        )
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not a file: {str(raw)[:200]}") from exc


def _check_digest(info: FileInfo, sha256: str) -> None:
    if info.sha256 != sha256:
        raise BadAnswer(
            f"file {info.id} ({info.filename}) is not the same here and on the server: sha256 {sha256} here,"
            f" {info.sha256} there"
        )


def _broken_upload(upload: FormUpload, error: ConnectionFailed) -> ConnectionFailed:
    return type(error)(
        f"the connection broke while {upload.filename} was uploaded ({error.message});"
        " `ondol files ls` shows whether it arrived",
        url=error.url,
    )
