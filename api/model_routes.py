"""`/v1/models`: OpenAI's list of models, with what ours are beyond a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import Response

from api import alias_routes, model_files, model_openapi
from api import openapi_parts as docs
from api.job_routes import json_response
from api.services import CallerDep, ServicesDep
from ondol.contract.errors import InvalidPayload
from ondol.contract.model_ref import DEFAULT_ALIAS, parse_model_ref
from ondol.sql.records import DtypeRecord, VersionRecord
from ondol.sql.unit_of_work import UnitOfWork


class _RefConvertor(StringConvertor):
    """A reference of any form, slashes and all, so that a wrong one is named; not what is below a model."""

    regex = r"(?!.+/(?:aliases|files)(?:/|$)).+"


register_url_convertor("model_ref", _RefConvertor())
_models = APIRouter(prefix="/v1/models", tags=["models"])


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What is shown beside each model: who owns it, and the dtypes found on the kinds of devices that serve now."""

    project: str
    dtypes: dict[str, dict[str, DtypeRecord]]


@_models.get("", responses=docs.MODEL_PAGE_RESPONSES)
async def list_models(services: ServicesDep, caller: CallerDep) -> Response:
    """All models of the project, by name."""

    def read(uow: UnitOfWork) -> list[dict[str, Any]]:
        by_name: dict[str, list[VersionRecord]] = {}
        for version in uow.models.list_versions(caller.project_id):
            by_name.setdefault(version.name, []).append(version)
        shelf = _Shelf(caller.project, _dtypes(uow, caller.project_id))
        return [_model_json(name, _shown(found), found, shelf) for name, found in by_name.items()]

    return json_response({"object": "list", "data": await services.database.read(read)})


@_models.get("/{ref:model_ref}", responses=docs.MODEL_RESPONSES)
async def get_model(ref: str, services: ServicesDep, caller: CallerDep) -> Response:
    """One model by reference: name, name:3 or name@alias."""
    parsed = parse_model_ref(ref)

    def read(uow: UnitOfWork) -> dict[str, Any]:
        version = uow.models.resolve(parsed, caller.project_id)
        siblings = uow.models.list_versions(caller.project_id, version.name)
        shelf = _Shelf(caller.project, _dtypes(uow, caller.project_id, version.name))
        return _model_json(ref, version, siblings, shelf)

    return json_response(await services.database.read(read))


@_models.delete("/{ref:model_ref}", responses=model_openapi.DELETED_RESPONSES)
async def delete_version(ref: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Delete one version, `name:3`: new requests do not find it, accepted jobs finish. 409 while an alias names it."""
    parsed = parse_model_ref(ref)
    number = parsed.number
    if number is None:
        raise InvalidPayload(f"name the version to delete, such as {parsed.name}:3", param="model")
    await services.database.write(lambda uow: uow.models.delete_version(caller.project_id, parsed.name, number))
    return json_response({"id": ref, "object": "model", "deleted": True})


# In this order: a reference of any form, whose route takes every path, comes last.
router = APIRouter()
for _part in (alias_routes.router, model_files.router, _models):
    router.include_router(_part)


def _shown(versions: Sequence[VersionRecord]) -> VersionRecord:
    """The version that the bare name means."""
    return next((v for v in versions if DEFAULT_ALIAS in v.aliases), versions[-1])


def _model_json(id: str, version: VersionRecord, siblings: Sequence[VersionRecord], shelf: _Shelf) -> dict[str, Any]:
    spec = version.spec
    return {
        "id": id,
        "object": "model",
        "created": int(version.created_at),
        "owned_by": shelf.project,
        "version": version.ref,
        "task": version.task,
        "dimensions": spec.get("dimensions"),
        "max_length": spec.get("max_length"),
        "architecture": spec.get("architecture"),
        "num_parameters": spec.get("num_parameters"),
        "prompts": spec.get("prompts", {}),
        "labels": list(spec.get("labels", ())),
        "problem_type": spec.get("problem_type"),
        "threshold": spec.get("threshold"),
        "metrics": version.lineage.get("metrics", {}),
        "lineage": {name: value for name, value in version.lineage.items() if name != "metrics"},
        "size_bytes": version.size_bytes,
        "aliases": {alias: v.ref for v in siblings for alias in v.aliases},
        "versions": [{"id": v.ref, "created": int(v.created_at), "job_id": v.job_id} for v in siblings],
        "dtypes": {kind: _dtype_json(one) for kind, one in shelf.dtypes.get(version.manifest_digest, {}).items()},
        "files_url": f"/v1/models/{version.ref}/files",
    }


def _dtypes(uow: UnitOfWork, project_id: str, name: str | None = None) -> dict[str, dict[str, DtypeRecord]]:
    """What `dtype: auto` means by files and kind of device, for kinds that serve now, as far as it was measured."""
    kinds = {session.device_kind for session in uow.sessions.open_sessions()}
    found: dict[str, dict[str, DtypeRecord]] = {}
    for one in uow.models.resolved_dtypes(project_id, name):
        if one.device_kind in kinds and one.engine == "torch":
            found.setdefault(one.manifest_digest, {})[one.device_kind] = one
    return found


def _dtype_json(found: DtypeRecord) -> dict[str, Any]:
    return {
        "dtype": found.dtype,
        "engine": found.engine,
        "fidelity": found.fidelity,
        "is_packed": found.is_packed,
    }
