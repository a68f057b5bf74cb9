"""The fixture of one api process for all tests of a file or folder, each with settings of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from tests.http.api_process import ApiProcess
from tests.servers import RedisServer


def api_fixture(scope: Literal["module", "session"] = "module", **settings: object) -> object:
    """A fixture, to be bound to its name: a running api on SQLite with these settings, else the defaults."""

    @pytest.fixture(scope=scope)
    def api(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[ApiProcess]:
        folder = tmp_path_factory.mktemp("api")
        made = ApiProcess(
            folder,
            database_url=f"sqlite:///{folder / 'ondol.db'}",
            redis_url=redis_server.url,
            **{name: str(value) for name, value in settings.items()},
        )
        made.start()
        yield made
        made.close()

    return api
