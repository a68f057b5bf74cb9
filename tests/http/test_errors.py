"""Every error of ours has a status of its own, and a body that OpenAI's clients can read."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import api
import models_store
import ondol.broker
import ondol.contract
import ondol.sql
from api.errors import STATUS, error_from_record, error_response, status_of
from ondol.contract import errors as e

pytestmark = pytest.mark.unit

SERVER_SIDE = (api, models_store, ondol.broker, ondol.contract, ondol.sql)


def test_every_error_of_the_server_has_a_status() -> None:
    for package in SERVER_SIDE:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations" not in module.name:
                importlib.import_module(module.name)
    names = tuple(f"{package.__name__}." for package in SERVER_SIDE)
    ours = [kind for kind in subclasses(e.OndolError) if f"{kind.__module__}.".startswith(names)]
    assert len(ours) > 25
    assert [kind.__name__ for kind in ours if kind not in STATUS] == []


def test_what_may_be_tried_again_says_when() -> None:
    for error in (e.Overloaded("full", retry_after_s=2.2), e.NotReady("no worker"), e.IdempotencyInFlight("wait")):
        headers = error_response(error).headers
        assert headers["x-should-retry"] == "true" and int(headers["retry-after"]) >= 1
    full = error_response(e.Overloaded("full", retry_after_s=1.8, spread_s=0.4)).headers
    assert (full["retry-after"], full["retry-after-ms"]) == ("2", "2200"), "rounded up, or spread: not both"
    assert error_response(e.IllegalTransition("no")).headers["x-should-retry"] == "false"


def test_an_error_by_wire_keeps_its_status() -> None:
    assert status_of(e.OndolError("late", code="deadline_exceeded")) == 504
    assert status_of(e.OndolError("strange", code="something_new")) == 500
    assert status_of(error_from_record({"code": "context_length_exceeded", "message": "x"}, param="input[3]")) == 400
    assert status_of(error_from_record({"code": "something_new", "message": "x"}, param="input[3]")) == 400
    assert status_of(error_from_record({"code": "device_lost", "message": "x"}, param="input[3]")) == 503


def subclasses(root: type[e.OndolError]) -> Iterator[type[e.OndolError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from subclasses(kind)
