"""`/v1/files`: OpenAI's routes for files: upload, list, look, download, delete."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any, Literal
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from api import file_openapi as docs
from api.auth import Caller
from api.job_routes import json_response
from api.services import BYTES_A_MB, CallerDep, Services, ServicesDep
from api.threads import in_store
from api.upload import RequestBody, UploadedFile, receive_file, refusal
from api.verified_content import verified_content
from ondol.contract.errors import ModelStoreError, OndolError
from ondol.contract.files import check_file_id, check_purpose
from ondol.contract.ids import new_id
from ondol.sql.files import FileRecord, NewFile

DEFAULT_PAGE = 1_000
MAX_PAGE = 10_000

router = APIRouter(prefix="/v1/files", tags=["files"])
log = structlog.get_logger(__name__)


@router.post("", openapi_extra=docs.UPLOAD_BODY, responses=docs.FILE_RESPONSES)
async def upload_file(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Upload one file, as a form with `file` and `purpose`; it is stored while it arrives.

    An Idempotency-Key is not looked at: a repeated upload makes a second file. The answer holds the content's SHA-256.
    """
    body = RequestBody(request)
    file_id = new_id("file")
    max_bytes = services.settings.max_file_mb * BYTES_A_MB
    try:
        uploaded = await receive_file(request, body, services.files.create(file_id), max_bytes=max_bytes)
        return json_response(file_json(await _record(services, caller, file_id, uploaded)))
    except OndolError as error:
        return refusal(error, body)


@router.get("", responses=docs.FILE_PAGE_RESPONSES)
async def list_files(
    services: ServicesDep,
    caller: CallerDep,
    purpose: Annotated[
        str | None,
        Query(description="Only files of this purpose.", json_schema_extra={"enum": list(docs.SHOWN_PURPOSES)}),
    ] = None,
    after: Annotated[str | None, Query(description="Begin behind this file: the last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most files of a page.")] = DEFAULT_PAGE,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of upload.")] = "desc",
) -> Response:
    """A page of files, newest first."""
    wanted = check_purpose(purpose, may_be_ours=True) if purpose is not None else None
    cursor = check_file_id(after) if after is not None else None
    records, has_more = await services.database.read(
        lambda uow: uow.files.page(
            caller.project_id, purpose=wanted, after=cursor, limit=limit, is_ascending=order == "asc"
        )
    )
    data = [file_json(record) for record in records]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return json_response({"object": "list", "data": data, **ends, "has_more": has_more})


@router.get("/{file_id}", responses=docs.FILE_RESPONSES)
async def get_file(file_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """One file, without its content."""
    return json_response(file_json(await _find(services, caller, file_id)))


@router.get("/{file_id}/content", responses=docs.CONTENT_RESPONSES)
async def get_content(file_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """The file's content, streamed. A file that is damaged in the store ends before its last bytes."""
    record = await _find(services, caller, file_id)
    stack = ExitStack()
    source = await in_store(lambda: stack.enter_context(services.files.open(file_id)))
    headers = {
        "content-length": str(record.size_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(record.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
    content = verified_content(source, stack, sha256=record.sha256, ref="the store", file=record.id)
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


@router.delete("/{file_id}", responses=docs.FILE_DELETE_RESPONSES)
async def delete_file(file_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Delete a file and its content; 409 while a job that has not ended needs it."""
    check_file_id(file_id)
    await services.database.write(lambda uow: uow.files.delete(file_id, caller.project_id))
    try:
        await in_store(services.files.delete, file_id)
    except ModelStoreError as exc:  # nobody can name the file any more; its blob waits for the store's clean-up
        log.warning("file.blob_not_deleted", file_id=file_id, reason=exc.message)
    return json_response({"id": file_id, "object": "file", "deleted": True})


def file_json(file: FileRecord) -> dict[str, Any]:
    """The file object, OpenAI's with the digest beside."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": None if file.expires_at is None else int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "sha256": file.sha256,
    }


async def _find(services: Services, caller: Caller, file_id: str) -> FileRecord:
    check_file_id(file_id)
    return await services.database.read(lambda uow: uow.files.get(file_id, caller.project_id))


async def _record(services: Services, caller: Caller, file_id: str, uploaded: UploadedFile) -> FileRecord:
    assert uploaded.filename is not None and uploaded.purpose is not None
    new = NewFile(
        file_id,
        caller.project_id,
        uploaded.filename,
        uploaded.purpose,
        uploaded.size_bytes,
        uploaded.sha256,
        uploaded.expires_after_s,
    )
    # Should the database fail now, the row may be there or not: the blob stays, and the clean-up finds out.
    return await services.database.write(lambda uow: uow.files.add(new))
