"""Two api processes for this folder: one with its defaults, one that takes files up to 1 MB."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.files.store_folder import StoreFolder
from tests.http.api_process import ApiProcess, Member
from tests.http.shared_api import api_fixture

roomy_api = api_fixture("session")
"""An api with its defaults."""


narrow_api = api_fixture("session", max_file_mb=1)
"""An api that takes files of at most 1 MB."""


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
