"""The OpenAPI document: served at `/openapi.json`, exported by `python -m api.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.openapi_schemas import component_schemas
from ondol.contract.model_ref import NAME_PATTERN

TITLE = "Ondol"
VERSION = "1"
DESCRIPTION = (
    "The job system for transformer models: durable jobs and synchronous calls on warm devices. "
    "Errors have OpenAI's shape, below `/models/` Hugging Face's; every answer carries `x-request-id`."
)
_OPEN_PATHS = frozenset({"/flower", "/livez", "/metrics", "/readyz"})
_HUGGING_FACE = "/models/"
_REF = rf"{NAME_PATTERN}(:[1-9][0-9]{{0,8}}|@{NAME_PATTERN})?"
_FORMS = {
    "job_id": "job_[0-9a-z]{26}",
    "notice_id": "[a-z]{1,8}_[0-9a-z]{26}",
    "file_id": "file_[0-9a-z]{26}",
    "ref": _REF,
    "model": _REF,
    "name": NAME_PATTERN,
    "alias": NAME_PATTERN,
}
"""What parameters of these names look like; others are refused where they come in."""
_FORMS_OF = {
    ("delete", "/v1/models/{ref}"): {"ref": rf"{NAME_PATTERN}:[1-9][0-9]{{0,8}}"},
    ("get", "/v1/fine_tuning/jobs/{job_id}/events"): {"after": "ftevent_[0-9a-z]{26}_[1-9][0-9]{0,8}"},
    ("get", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): {"after": "ftckpt_[0-9a-z]{26}_(0|[1-9][0-9]{0,8})"},
}


def build_document(app: FastAPI) -> dict[str, Any]:
    """The document of the app's routes, with our schemas and error answers in place of the framework's."""
    document = get_openapi(title=TITLE, version=VERSION, description=DESCRIPTION, routes=app.routes)
    components = document.setdefault("components", {})
    components["schemas"] = _without_validation_errors(components.get("schemas", {})) | component_schemas()
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _finish(operation, path)
            _add_forms(operation, _FORMS | _FORMS_OF.get((method, path), {}))
    return document


def render(document: dict[str, Any]) -> str:
    """The document as the file in `docs/` holds it."""
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write the document to stdout."""
    from api.app import create_app

    sys.stdout.write(render(create_app().openapi()))


def _without_validation_errors(schemas: dict[str, Any]) -> dict[str, Any]:
    return {name: schema for name, schema in schemas.items() if "ValidationError" not in name}


def _add_forms(operation: dict[str, Any], forms: dict[str, str]) -> None:
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        for part in schema.get("anyOf", [schema]):
            if parameter["name"] in forms and part.get("type") == "string":
                part["pattern"] = f"^{forms[parameter['name']]}$"


def _finish(operation: dict[str, Any], path: str) -> None:
    operation["responses"].pop("422", None)
    if path in _OPEN_PATHS:
        return
    shape = "HuggingFaceError" if path.startswith(_HUGGING_FACE) else "Error"
    error = {"schema": {"$ref": f"#/components/schemas/{shape}"}}
    operation["responses"]["default"] = {"description": "Refused or failed.", "content": {"application/json": error}}
    operation["security"] = [{"key": []}]


if __name__ == "__main__":
    main()
