"""While a stack starts, whatever its api answers is a reason to wait, and says where to look."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import pytest

from ondol.contract.devices import parse_devices
from ondol.contract.ids import new_id
from ondol.control.up_ready import Start
from tests.client.scripted_server import ScriptedServer

pytestmark = pytest.mark.unit


def missing(start: Start, *replies: httpx.Response) -> str | None:
    with httpx.Client(base_url="http://ondol.test", transport=ScriptedServer(replies)) as client:
        return start.what_is_missing(client)


def workers(*devices: str) -> httpx.Response:
    sessions = [{"id": new_id("ses"), "device": one, "is_ready": True, "role": "infer"} for one in devices]
    return httpx.Response(200, json={"object": "list", "data": sessions})


@pytest.mark.parametrize("reply", [httpx.Response(503, json={"error": {}}), httpx.Response(502, text="<html>")])
def test_an_error_while_starting_is_waited_out(reply: httpx.Response) -> None:
    start = Start.now(parse_devices("cpu:1x1", cores=(0,), num_gpus=0))
    assert missing(start, httpx.Response(200), reply) == f"the api answers {reply.status_code} (api.log)"
    assert missing(start, httpx.Response(200), workers()) == "no worker is ready on cpu:0 (worker-cpu0.log)"
    assert missing(start, httpx.Response(200), workers("cpu:0")) is None


def replies(*statuses: int) -> Sequence[httpx.Response]:
    return [httpx.Response(status) for status in statuses]


def test_an_api_that_wants_a_key_is_taken_at_its_word() -> None:
    start = Start.now(parse_devices("cpu:1x1", cores=(0,), num_gpus=0))
    assert missing(start, *replies(503)) == "the api is not ready (api.log)"
    assert missing(start, *replies(200, 401)) is None
