"""`/v1/models/{ref}/files`: a version's files as its manifest lists them, each streamed from the store."""

from __future__ import annotations

from contextlib import ExitStack

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from api import model_openapi as docs
from api.auth import Caller
from api.job_routes import json_response
from api.services import CallerDep, Services, ServicesDep
from api.threads import in_store
from api.verified_content import verified_content
from models_store.manifest import Manifest
from ondol.contract.errors import ModelNotFound
from ondol.contract.model_ref import parse_model_ref
from ondol.sql.records import VersionRecord

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("/{ref}/files", responses=docs.FILE_LIST_RESPONSES)
async def list_model_files(ref: str, services: ServicesDep, caller: CallerDep) -> Response:
    """The files of a version with their digests: together a folder that `from_pretrained` takes."""
    version, manifest = await _manifest(services, caller, ref)
    return json_response(
        {
            "object": "list",
            "version": version.ref,
            "size_bytes": manifest.size_bytes,
            "data": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in manifest.files],
        }
    )


@router.get("/{ref}/files/{path:path}", responses=docs.FILE_RESPONSES)
async def get_model_file(ref: str, path: str, services: ServicesDep, caller: CallerDep) -> Response:
    """One file of a version, streamed. A file that is damaged in the store ends before its last bytes."""
    version, manifest = await _manifest(services, caller, ref)
    file = next((file for file in manifest.files if file.path == path), None)
    if file is None:
        raise ModelNotFound(f"{version.ref} has no file {path[:200]!r}", param="path")
    stack = ExitStack()
    source = await in_store(lambda: stack.enter_context(services.store.open_blob(file.sha256)))
    headers = {
        "content-length": str(file.size_bytes),
        "etag": f'"{file.sha256}"',
        "x-content-type-options": "nosniff",
    }
    content = verified_content(source, stack, sha256=file.sha256, ref=version.ref, file=file.path)
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


async def _manifest(services: Services, caller: Caller, ref: str) -> tuple[VersionRecord, Manifest]:
    parsed = parse_model_ref(ref)
    version = await services.database.read(lambda uow: uow.models.resolve(parsed, caller.project_id))
    return version, await in_store(services.store.read_manifest, version.manifest_digest)
