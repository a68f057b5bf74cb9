"""`/flower`: the way to Flower, for people who know the api's address only."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from api import openapi_parts as docs
from api.services import ServicesDep
from ondol.contract.errors import NotFound

router = APIRouter(tags=["health"])


@router.get("/flower", responses=docs.FLOWER_RESPONSES)
async def to_flower(services: ServicesDep) -> Response:
    """A redirect to Flower, which asks for its own password; 404 if the api knows of none."""
    url = services.flower.url()
    if url is None:
        message = (
            "no Flower is known here: start it (`ondol up` does, unless ONDOL_FLOWER is false), or set ONDOL_FLOWER_URL"
        )
        raise NotFound(message, code="flower_not_found")
    return RedirectResponse(url, 307)
