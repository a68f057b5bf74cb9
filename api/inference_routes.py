"""`POST /models/{ref}` and `/models/{ref}/{task}`: calls in the shapes of Hugging Face's inference client."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from api import openapi_parts as docs
from api.auth import Caller
from api.hugging_face import answer_json, kind_of, parse_call, refusal
from api.inference_call import InferenceCall, Inferred, unless_client_leaves
from api.request_body import read_json
from api.services import CallerDep, Services, ServicesDep
from api.threads import run_sized
from ondol.contract.errors import OndolError

BYTES_AN_ENTITY = 128


class HuggingFaceRoute(APIRoute):
    """A route whose refusals, also those of its dependencies, have Hugging Face's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler with our errors turned into answers."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except OndolError as error:
                return refusal(error)

        return answer


router = APIRouter(tags=["inference"], route_class=HuggingFaceRoute)


@router.post("/models/{ref}", openapi_extra=docs.json_body("InferenceRequest"), responses=docs.INFERENCE_RESPONSES)
async def infer(ref: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """The version's own task; an embedding model's is feature-extraction. All or nothing."""
    return await _infer(ref, None, request, services, caller)


@router.post(
    "/models/{ref}/{task}", openapi_extra=docs.json_body("InferenceRequest"), responses=docs.INFERENCE_RESPONSES
)
async def infer_task(ref: str, task: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """feature-extraction, text-classification or token-classification. All or nothing."""
    return await _infer(ref, task, request, services, caller)


async def _infer(ref: str, task: str | None, request: Request, services: Services, caller: Caller) -> Response:
    begun = time.perf_counter()
    body = await read_json(request, services.bodies)
    served = await services.models.for_call(ref, caller.project_id)
    kind = kind_of(task, served.spec)
    asked = await run_sized(len(body.raw), lambda: parse_call(body.value, kind, services.limits))
    options = await run_sized(len(body.raw), lambda: asked.options_for(served.spec))
    call = InferenceCall(services, caller, served, kind, options, asked.inputs, asked.num_bytes)
    done = await unless_client_leaves(request, call.run())
    done.raise_item_error("inputs")
    content = await run_sized(_answer_size(done), lambda: answer_json(asked, done))
    return Response(content, media_type="application/json", headers=done.headers(time.perf_counter() - begun))


def _answer_size(done: Inferred) -> int:
    """About how much work the answer's JSON is, in the unit of `run_sized`."""
    num_values = sum(vector.size for vector in done.vectors)
    num_entities = sum(map(len, done.outputs or ()))
    return num_values + BYTES_AN_ENTITY * num_entities
