"""`/v1/models/{name}/aliases`: look, move by compare-and-set, delete; each move is in the history."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import Response

from api import model_openapi as docs
from api.job_routes import json_response
from api.model_openapi import MAX_VERSION
from api.request_body import read_json
from api.services import CallerDep, ServicesDep
from ondol.contract.jobs import validated
from ondol.contract.model_ref import check_model_name
from ondol.sql.aliases import MAX_REASON_CHARS, AliasMove, AliasRecord, Expected
from ondol.sql.unit_of_work import UnitOfWork

router = APIRouter(prefix="/v1/models", tags=["models"])


def _as_whole(value: Any) -> Any:
    """1.0 as 1: to JSON Schema both are integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Number = Annotated[int, BeforeValidator(_as_whole), Field(strict=True, ge=1, le=MAX_VERSION)]


class AliasRequest(BaseModel):
    """Where an alias shall point. `expected` left out: whatever it points to now; null: there is no such alias."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: _Number
    expected: _Number | None = None
    reason: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""


@router.get("/{name}/aliases", responses=docs.ALIAS_LIST_RESPONSES)
async def list_aliases(
    name: str,
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most moves of the history.")] = 100,
) -> Response:
    """Aliases of a model by name, and their latest moves, newest first."""
    check_model_name(name, param="model")

    def read(uow: UnitOfWork) -> tuple[list[AliasRecord], list[AliasMove]]:
        found = uow.models.list_aliases(caller.project_id, name)
        return found, uow.models.alias_history(caller.project_id, name, limit=limit)

    found, moves = await services.database.read(read)
    data = [_alias_json(name, alias) for alias in found]
    return json_response({"object": "list", "data": data, "history": [_move_json(move) for move in moves]})


@router.put("/{name}/aliases/{alias}", openapi_extra=docs.ALIAS_BODY, responses=docs.ALIAS_RESPONSES)
async def set_alias(name: str, alias: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Let an alias point to a version. 409 `alias_moved` if it does not point to what was expected.

    Workers that hold the old version warm load the new one within seconds.
    """
    check_model_name(name, param="model")
    body = await read_json(request, services.bodies)
    asked = validated(AliasRequest, body.value)
    expected: Expected = asked.expected if "expected" in asked.model_fields_set else "any"

    def move(uow: UnitOfWork) -> AliasRecord:
        record = uow.models.set_alias(
            caller.project_id, name, alias, asked.version, expected=expected, reason=asked.reason
        )
        if record.is_moved:
            uow.after_commit(services.wake.alias_moved)
        return record

    return json_response(_alias_json(name, await services.database.write(move)))


@router.delete("/{name}/aliases/{alias}", responses=docs.DELETED_RESPONSES)
async def delete_alias(
    name: str,
    alias: str,
    services: ServicesDep,
    caller: CallerDep,
    expected: Annotated[
        int | None, Query(ge=1, le=MAX_VERSION, description="Only if it points to this version now.")
    ] = None,
    reason: Annotated[str, Query(max_length=MAX_REASON_CHARS)] = "",
) -> Response:
    """Delete an alias; its history stays. 409 `alias_moved` if it does not point to what was expected."""
    check_model_name(name, param="model")

    def delete(uow: UnitOfWork) -> None:
        uow.models.delete_alias(
            caller.project_id, name, alias, expected="any" if expected is None else expected, reason=reason
        )
        uow.after_commit(services.wake.alias_moved)

    await services.database.write(delete)
    return json_response({"id": f"{name}@{alias}", "object": "model.alias", "deleted": True})


def _alias_json(name: str, alias: AliasRecord) -> dict[str, Any]:
    return {
        "object": "model.alias",
        "name": alias.name,
        "version": f"{name}:{alias.number}",
        "updated_at": alias.updated_at,
    }


def _move_json(move: AliasMove) -> dict[str, Any]:
    return {
        "alias": move.alias,
        "version": None if move.number is None else f"{move.model}:{move.number}",
        "previous": None if move.previous_number is None else f"{move.model}:{move.previous_number}",
        "created_at": move.created_at,
        "reason": move.reason,
    }
