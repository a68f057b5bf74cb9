"""Two api processes for this folder: one with its defaults, one that takes files up to 1 MB."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.files.store_folder import StoreFolder
from tests.http.api_process import ApiProcess, Member
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def roomy_api(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[ApiProcess]:
    """An api with its defaults."""
    folder = tmp_path_factory.mktemp("roomy-api")
    api = ApiProcess(folder, database_url=f"sqlite:///{folder / 'ondol.db'}", redis_url=redis_server.url)
    api.start()
    yield api
    api.close()


@pytest.fixture(scope="session")
def narrow_api(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[ApiProcess]:
    """An api that takes files of at most 1 MB."""
    folder = tmp_path_factory.mktemp("narrow-api")
    url = f"sqlite:///{folder / 'ondol.db'}"
    api = ApiProcess(folder, database_url=url, redis_url=redis_server.url, max_file_mb="1")
    api.start()
    yield api
    api.close()


@pytest.fixture
def member(roomy_api: ApiProcess) -> Iterator[Member]:
    """Somebody with a project of their own."""
    made = roomy_api.member(with_model=False)
    yield made
    made.close()


@pytest.fixture
def narrow(narrow_api: ApiProcess) -> Iterator[Member]:
    """Somebody with a project of their own, where files have at most 1 MB."""
    made = narrow_api.member(with_model=False)
    yield made
    made.close()


@pytest.fixture
def narrow_store(narrow_api: ApiProcess) -> StoreFolder:
    """What the narrow api keeps of files."""
    return StoreFolder(narrow_api)


@pytest.fixture
def store(roomy_api: ApiProcess) -> StoreFolder:
    """What the other api keeps of files."""
    return StoreFolder(roomy_api)
