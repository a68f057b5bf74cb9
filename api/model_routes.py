"""`/v1/models`: OpenAI's list of models, with what ours are beyond a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api import openapi_parts as docs
from api.auth import Caller
from api.job_routes import json_response
from api.services import CallerDep, ServicesDep
from ondol.contract.model_ref import DEFAULT_ALIAS, parse_model_ref
from ondol.sql.records import VersionRecord
from ondol.sql.unit_of_work import UnitOfWork

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=docs.MODEL_PAGE_RESPONSES)
async def list_models(services: ServicesDep, caller: CallerDep) -> Response:
    """All models of the project, by name."""

    def read(uow: UnitOfWork) -> list[dict[str, Any]]:
        by_name: dict[str, list[VersionRecord]] = {}
        for version in uow.models.list_versions(caller.project_id):
            by_name.setdefault(version.name, []).append(version)
        kinds = _device_kinds(uow)
        return [_model_json(uow, name, _shown(found), found, caller, kinds) for name, found in by_name.items()]

    return json_response({"object": "list", "data": await services.database.read(read)})


@router.get("/{ref:path}", responses=docs.MODEL_RESPONSES)
async def get_model(ref: str, services: ServicesDep, caller: CallerDep) -> Response:
    """One model by reference: name, name:3 or name@alias."""
    parsed = parse_model_ref(ref)

    def read(uow: UnitOfWork) -> dict[str, Any]:
        version = uow.models.resolve(parsed, caller.project_id)
        siblings = [v for v in uow.models.list_versions(caller.project_id) if v.name == version.name]
        return _model_json(uow, ref, version, siblings, caller, _device_kinds(uow))

    return json_response(await services.database.read(read))


def _shown(versions: Sequence[VersionRecord]) -> VersionRecord:
    """The version that the bare name means."""
    return next((v for v in versions if DEFAULT_ALIAS in v.aliases), versions[-1])


def _device_kinds(uow: UnitOfWork) -> list[str]:
    return sorted({session.device_kind for session in uow.sessions.open_sessions()})


def _model_json(
    uow: UnitOfWork,
    id: str,
    version: VersionRecord,
    siblings: Sequence[VersionRecord],
    caller: Caller,
    device_kinds: Sequence[str],
) -> dict[str, Any]:
    spec = version.spec
    return {
        "id": id,
        "object": "model",
        "created": int(version.created_at),
        "owned_by": caller.project,
        "version": version.ref,
        "task": version.task,
        "dimensions": spec.get("dimensions"),
        "max_length": spec.get("max_length"),
        "architecture": spec.get("architecture"),
        "num_parameters": spec.get("num_parameters"),
        "prompts": spec.get("prompts", {}),
        "size_bytes": version.size_bytes,
        "aliases": {alias: v.ref for v in siblings for alias in v.aliases},
        "versions": [{"id": v.ref, "created": int(v.created_at), "job_id": v.job_id} for v in siblings],
        "dtypes": _dtypes(uow, version, device_kinds),
    }


def _dtypes(uow: UnitOfWork, version: VersionRecord, device_kinds: Sequence[str]) -> dict[str, Any]:
    """What `dtype: auto` means on each kind of device that serves now, as far as it was measured."""
    shown = {}
    for kind in device_kinds:
        found = uow.models.resolved_dtype(version.manifest_digest, kind)
        if found is not None:
            shown[kind] = {
                "dtype": found.dtype,
                "engine": found.engine,
                "fidelity": found.fidelity,
                "is_packed": found.is_packed,
            }
    return shown
