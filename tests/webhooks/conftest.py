"""One api process for this folder that may tell loopback addresses; each test has a project of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ondol.client.sync_client import Ondol
from tests.http.api_process import ApiProcess, Member
from tests.servers import RedisServer

TIMEOUT_S = 2
LOOPBACK = "127.0.0.0/8"
FLOWER_URL = "http://flower.test"


@pytest.fixture(scope="session")
def webhook_api(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[ApiProcess]:
    """An api with short pauses. What it would find in the environment of a proxy leads nowhere."""
    folder = tmp_path_factory.mktemp("webhook-api")
    patch = pytest.MonkeyPatch()
    patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    patch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    api = ApiProcess(
        folder,
        database_url=f"sqlite:///{folder / 'ondol.db'}",
        redis_url=redis_server.url,
        webhook_networks=LOOPBACK,
        webhook_timeout_s=str(TIMEOUT_S),
        webhook_first_pause_s="0.1",
        flower_url=FLOWER_URL,
    )
    patch.undo()
    api.start()
    yield api
    api.close()


@pytest.fixture
def member(webhook_api: ApiProcess) -> Iterator[Member]:
    """Somebody with a project and a model."""
    made = webhook_api.member()
    yield made
    made.close()


@pytest.fixture
def client(member: Member) -> Iterator[Ondol]:
    """The member's client."""
    with Ondol(member.api.url, member.secret) as opened:
        yield opened
