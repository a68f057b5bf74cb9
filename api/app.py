"""The application: routes, the outermost layer, and one shape for every error. No I/O happens here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from api import (
    batch_routes,
    embedding_routes,
    event_routes,
    file_routes,
    fine_tune_routes,
    fine_tuning_routes,
    flower_routes,
    health_routes,
    inference_routes,
    job_routes,
    metrics_routes,
    model_routes,
    result_routes,
    webhook_routes,
)
from api.errors import error_response
from api.openapi import build_document
from api.request_edge import RequestEdge
from ondol.contract.errors import ContractError, InvalidPayload, NotFound, OndolError
from ondol.contract.jobs import field_path
from ondol.metrics.roles import ApiMetrics

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_SOURCES = frozenset({"body", "cookie", "header", "path", "query"})
_NOT_FOUND = 404
_ROUTES = (
    job_routes,
    fine_tune_routes,
    fine_tuning_routes,
    batch_routes,
    result_routes,
    event_routes,
    embedding_routes,
    inference_routes,
    model_routes,
    file_routes,
    webhook_routes,
    health_routes,
    flower_routes,
    metrics_routes,
)


def create_app(lifespan: Lifespan | None = None, metrics: ApiMetrics | None = None) -> FastAPI:
    """The app; `lifespan` puts the services into `app.state.services` before the first request."""
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    for module in _ROUTES:
        app.include_router(module.router)
    app.add_middleware(RequestEdge, metrics=metrics or ApiMetrics())
    app.add_exception_handler(OndolError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.openapi = lambda: _document_once(app)  # type: ignore[method-assign]  # the way the framework documents
    return app


def _document_once(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        app.openapi_schema = build_document(app)
    return app.openapi_schema


async def _on_ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OndolError)
    return error_response(error)


async def _on_invalid_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    loc = list(first["loc"])
    path = field_path(loc[1:] if loc and loc[0] in _SOURCES else loc)
    return error_response(InvalidPayload(f"{path}: {first['msg']}", param=path or None))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == _NOT_FOUND:
        return error_response(NotFound(f"there is no route {request.url.path[:200]!r}", code="route_not_found"))
    what = f"{request.method} is not answered here" if error.status_code == 405 else str(error.detail)
    code = "method_not_allowed" if error.status_code == 405 else "invalid_request"
    response = error_response(ContractError(what, code=code), status=error.status_code)
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["allow"] = ", ".join(_methods_of(request))
    return response


def _methods_of(request: Request) -> list[str]:
    """What the address answers; the framework names the methods of one of its routes alone."""
    routes = iter_route_contexts(request.app.routes)
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})
