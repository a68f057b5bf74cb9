"""The system under chaos: own Redis, own database, and every process of Ondol, with links between that can be cut."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sa

from models_store.store import ModelStore
from ondol.contract.errors import ModelStoreError
from ondol.control.reconciler import CANARY_KEY
from tests.chaos.history import History
from tests.chaos.oracle import Oracle
from tests.chaos.proxy import Link
from tests.cluster import Cluster, running_cluster
from tests.publishing import import_here
from tests.servers import PostgresServer, RedisServer
from tests.tiny_models import make_tiny_model
from tests.waiting import wait_until

LEASE_S = 3.0
LEADER_LEASE_S = 2.0
MESSAGE_TOKENS = 256
MODEL = "tiny"
SETTINGS = {
    "ONDOL_LEASE_S": str(LEASE_S),
    "ONDOL_RENEW_S": "0.6",
    "ONDOL_RUNG_UNCLAIMED_S": "2",
    "ONDOL_LEADER_LEASE_S": str(LEADER_LEASE_S),
    "ONDOL_TICK_S": "0.5",
    "ONDOL_MESSAGE_TOKENS": str(MESSAGE_TOKENS),
    "ONDOL_CALL_TIMEOUT_S": "8",
    "ONDOL_FORWARD_LIMIT_S": "10",
    "ONDOL_TRAIN_GRACE_S": "10",
    "ONDOL_LOG_FORMAT": "json",
}
PATIENT = {
    "ONDOL_LEASE_S": "30",
    "ONDOL_RUNG_UNCLAIMED_S": "20",
    "ONDOL_LEADER_LEASE_S": "30",
}
"""For a calm run: a busy machine that makes a process late needs no repair."""
WORKERS = ("worker0", "worker1")
TRAINER = "trainer0"
RECONCILERS = ("reconciler0", "reconciler1")
API = "api"
_DEVICE_DELAY = ("--delay-us-per-token", "150")
_STOP_LIMIT_S = 20
_STORE_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Size:
    """How much is started. `has_real_device`: the product's device process with torch instead of the tests' own.

    `is_patient`: with long leases.
    """

    is_postgresql: bool = False
    has_trainer: bool = True
    has_real_device: bool = False
    num_reconcilers: int = 2
    is_patient: bool = False


@dataclass(slots=True)
class World:
    """Everything that a nemesis can reach. Names of processes are those of `cluster.processes`."""

    folder: Path
    size: Size
    history: History
    redis: RedisServer
    redis_link: Link
    cluster: Cluster
    version: Path
    store: ModelStore
    postgres: PostgresServer | None = None
    database_link: Link | None = None
    down: set[str] = field(default_factory=set)
    """Processes that have ended and are not to be started again yet."""

    def oracle(self) -> Oracle:
        """What texts must give here."""
        return Oracle(self.version, is_hashing=not self.size.has_real_device)

    def launch(self) -> None:
        """Start every process but the api, and wait for none."""
        size, num_cores = self.size, os.cpu_count() or 1
        for name in RECONCILERS[: size.num_reconcilers]:
            self.cluster.start_reconciler(name)
        for number in range(len(WORKERS)):
            faults = None if size.has_real_device else _DEVICE_DELAY
            self.cluster.start_worker(number, faults=faults, cores=str(number % num_cores), waits=False)
        if size.has_trainer:
            self.cluster.start_trainer(cores=str(1 % num_cores), waits=False)

    def wait_until_ready(self) -> None:
        """Start the api, and wait until every process can work."""
        self.cluster.start_api()
        self.cluster.wait_for_workers(len(WORKERS))
        if self.size.has_trainer:
            self.cluster.wait_for_trainer()

    def supervise(self) -> None:
        """Start again what has ended, as `ondol up` or a container runtime would."""
        for name, process in list(self.cluster.processes.items()):
            code = process.poll()
            if code is not None and name not in self.down:
                self.history.note("restarted", process=name, exit_code=code)
                self.cluster.restart(name)

    def send(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a process, and not to its children; False if it is gone."""
        process = self.cluster.processes[name]
        if process.poll() is not None:
            return False
        process.send_signal(number)
        return True

    def children(self, name: str, word: str) -> list[psutil.Process]:
        """Children of a process that have `word` in their command line."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.cluster.processes[name].pid).children():
                with contextlib.suppress(psutil.Error):
                    if any(word in part for part in child.cmdline()):
                        found.append(child)
        return found

    def continue_all(self) -> None:
        """Wake everything that stands still."""
        for process in self.cluster.processes.values():
            if process.poll() is not None:
                continue
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                for one in [parent, *parent.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        one.send_signal(signal.SIGCONT)

    def heal(self) -> None:
        """Wake and start everything, and let all links flow."""
        self.down.clear()
        self.continue_all()
        self.redis_link.resume()
        if self.database_link is not None:
            self.database_link.forget_tear()
            self.database_link.resume()
        self.supervise()

    def stop_postgres(self, number: signal.Signals) -> None:
        """End the database server: SIGINT (transactions are broken off) or SIGQUIT (as a crash)."""
        pid = _server_pid(self)
        os.kill(pid, number)
        wait_until(lambda: not psutil.pid_exists(pid), within_s=_STOP_LIMIT_S, what="PostgreSQL to end")

    def start_postgres(self) -> None:
        """Start it again and wait until it answers."""
        assert self.postgres is not None
        self.postgres.start_again()

    def has_canary(self) -> bool:
        """Whether the key that dies with Redis' data is there."""
        with self.redis.client() as client:
            return bool(client.exists(CANARY_KEY))


def _server_pid(world: World) -> int:
    assert world.postgres is not None
    pid = world.postgres.pid
    assert pid is not None
    return pid


@contextlib.contextmanager
def running_world(folder: Path, size: Size, history: History, *, model: Path | None = None) -> Iterator[World]:
    """A world whose processes and servers all end with the block. `model`: a canonical folder; None: one is made."""
    with contextlib.ExitStack() as stack:
        redis = RedisServer(folder / "redis")
        redis.start()
        stack.callback(redis.stop)
        redis_link = stack.enter_context(Link(lambda: socket.create_connection(("127.0.0.1", redis.port))))
        postgres, link, own_url, process_url = None, None, f"sqlite:///{folder / 'ondol.db'}", None
        if size.is_postgresql:
            postgres = PostgresServer.start()
            stack.callback(postgres.stop)
            own_url = postgres.create_database()
            link = stack.enter_context(Link(lambda: _connect_postgres(own_url)))
            process_url = _through(own_url, link.port)
        settings = (
            SETTINGS
            | (PATIENT if size.is_patient else {})
            | ({"ONDOL_DATABASE_URL": process_url} if process_url else {})
        )
        redis_url = redis.url.replace(f":{redis.port}/", f":{redis_link.port}/")
        cluster = stack.enter_context(
            running_cluster(folder, database_url=own_url, redis_url=redis_url, settings=settings)
        )
        version = model or folder / "model" / "version"
        world = World(
            folder=folder,
            size=size,
            history=history,
            redis=redis,
            redis_link=redis_link,
            cluster=cluster,
            version=version,
            store=ModelStore(f"file://{folder / 'data' / 'store'}"),
            postgres=postgres,
            database_link=link,
        )
        stack.callback(world.continue_all)
        stack.enter_context(_watched(world.store, history))
        world.launch()
        if model is None:
            import_here(make_tiny_model(folder / "model" / "source"), version)
        cluster.publish(version, MODEL)
        world.wait_until_ready()
        yield world


def _connect_postgres(url: str) -> socket.socket:
    parts = sa.make_url(url)
    host = str(parts.query.get("host") or parts.host or "127.0.0.1")
    port = int(str(parts.query.get("port") or parts.port or 5432))
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        server.close()
        raise
    return server


def _through(url: str, port: int) -> str:
    """The same database by way of a loopback port."""
    query = {"host": "127.0.0.1", "port": str(port), "sslmode": "disable", "gssencmode": "disable"}
    return sa.make_url(url).set(host=None, port=None, query=query).render_as_string(hide_password=False)


@contextlib.contextmanager
def _watched(store: ModelStore, history: History) -> Iterator[None]:
    """Look at every manifest as soon as it is there: all files that it names must be there already."""
    over = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        for digest in set(store.list_manifests()) - seen:
            files = store.read_manifest(digest).files
            paths = [(file.path, store.local_blob(file.sha256)) for file in files]
            missing = [name for name, path in paths if path is not None and not path.is_file()]
            if missing:
                history.note("torn_manifest", digest=digest, missing=missing)
            seen.add(digest)

    def watch() -> None:
        while not over.wait(_STORE_POLL_S):
            with contextlib.suppress(ModelStoreError):  # a file that is renamed while the folder is listed
                look()

    thread = threading.Thread(target=watch, name="store-watcher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)
