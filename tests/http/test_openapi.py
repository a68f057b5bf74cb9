"""The document in `docs/` is the one that is served, and it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from api.app import create_app
from api.openapi import render
from tests.http.api_process import ROOT, Member

DOCUMENT = ROOT / "docs" / "openapi.json"


@pytest.mark.unit
def test_the_exported_document_is_the_live_one() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(create_app().openapi()), (
        "run `python -m api.openapi > docs/openapi.json`"
    )


@pytest.mark.unit
def test_every_reference_leads_somewhere() -> None:
    document = create_app().openapi()
    for ref in references(document):
        found: Any = document
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]
        assert found
    assert "HTTPValidationError" not in json.dumps(document)


@pytest.mark.integration
def test_the_document_is_served_without_a_key(member: Member) -> None:
    assert member.http.get("/openapi.json", headers={"authorization": ""}).json() == json.loads(DOCUMENT.read_text())


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)
