"""However many versions are pinned, each is prepared once; what is not pinned makes room among itself."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from models_store.cache import LocalCache
from models_store.store import ModelStore
from ondol.sql.database import Database
from ondol.sql.records import VersionRecord
from tests.device_child import device_options
from tests.servers import ON_SQLITE
from tests.serving.test_files_of_open_work import publish
from tests.serving.versions import tiny_versions
from tests.waiting import wait_until
from workers import model_library
from workers.device_keeper import DeviceKeeper, DeviceProgram
from workers.model_library import MAX_VERSIONS, ModelLibrary
from workers.preload import Preloader

pytestmark = [pytest.mark.integration, ON_SQLITE]

NUM_PINNED = MAX_VERSIONS + 1
LIMIT_S = 60


@pytest.fixture
def keeper() -> Iterator[DeviceKeeper]:
    """A device process of the tests' own, which says that it has loaded whatever it is told to."""
    argv = (sys.executable, "-m", "tests.device_programs", *device_options(0)[2:])
    made = DeviceKeeper(DeviceProgram(argv), forward_limit_s=20, on_up=lambda _: None, on_down=lambda: None)
    made.start()
    assert made.wait_up(LIMIT_S)
    yield made
    made.stop()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each version's tokenizer was loaded."""
    counted: Counter[str] = Counter()
    load = model_library.load_tokenizer

    def counting(path: Path, *, ref: str) -> Tokenizer:
        counted[ref] += 1
        return load(path, ref=ref)

    monkeypatch.setattr(model_library, "load_tokenizer", counting)
    return counted


def ask(library: ModelLibrary, version: VersionRecord) -> bool:
    """Prepare the version as a job does; whether it was there already, as a call wants it."""
    was_prepared = library.is_prepared(version.id, "auto")
    library.device_model(library.version(version.id), "auto")
    return was_prepared


def test_pinned_versions_stay_prepared(
    tmp_path: Path, tiny_version: Path, database: Database, keeper: DeviceKeeper, loads: Counter[str]
) -> None:
    store = ModelStore(f"file://{tmp_path / 'store'}")
    folders = tiny_versions(tiny_version, tmp_path / "versions", num=NUM_PINNED + MAX_VERSIONS + 1)
    versions = [publish(database, store, folder) for folder in folders]
    pinned, others = versions[:NUM_PINNED], versions[NUM_PINNED:]
    library = ModelLibrary(
        database=database,
        store=store,
        cache=LocalCache(tmp_path / "cache", 2**30),
        keeper=keeper,
        default_dtype="float32",
        on_loaded=lambda *_: None,
    )
    preloader = Preloader(database, library, [version.ref for version in pinned])
    preloader.start()
    preloader.device_up()
    wait_until(
        lambda: all(preloader.is_pinned(version.manifest_digest) for version in pinned),
        within_s=LIMIT_S,
        what="all models of the setting to be pinned",
    )
    for _ in range(2):
        assert [ask(library, version) for version in pinned] == [True] * NUM_PINNED
        for version in others:
            ask(library, version)
    assert [loads[version.ref] for version in pinned] == [1] * NUM_PINNED
    assert [loads[version.ref] for version in others] == [2] * len(others), "eight of them are remembered at a time"


def test_a_version_that_is_forgotten_takes_no_twin_of_its_files_along(
    tmp_path: Path, tiny_version: Path, database: Database, keeper: DeviceKeeper, loads: Counter[str]
) -> None:
    store = ModelStore(f"file://{tmp_path / 'store'}")
    folders = tiny_versions(tiny_version, tmp_path / "versions", num=MAX_VERSIONS)
    versions = [publish(database, store, folder) for folder in (folders[0], *folders[1:], folders[0])]
    first, last = versions[0], versions[-1]
    assert first.manifest_digest == last.manifest_digest
    library = ModelLibrary(
        database=database,
        store=store,
        cache=LocalCache(tmp_path / "cache", 2**30),
        keeper=keeper,
        default_dtype="float32",
        on_loaded=lambda *_: None,
    )
    for version in versions:
        ask(library, version)
    assert not library.is_prepared(first.id, "auto"), "it made room"
    assert library.is_prepared(last.id, "auto")
