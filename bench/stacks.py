"""Whole stacks for benchmarks: `ondol up` in a temporary folder on free ports, pinned, gone at the end of the block."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.machine import cores, pinned
from ondol.client.sync_client import Ondol
from ondol.demo.stack import Stack
from tests.servers import PostgresServer
from tests.tiny_models import make_tiny_model

MODEL = "all-minilm-l6-v2"
TINY = "tiny"
MODELS_FOLDER = Path(sys.prefix) / "share" / "ondol" / "models"
_QUIET = {
    "ONDOL_LOG_LEVEL": "warning",
    "ONDOL_TRAIN": "false",
    "ONDOL_FLOWER": "false",
    "ONDOL_PRODUCERS": "false",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A database's URL, and the server's process; None for a server that is not ours."""

    url: str
    pid: int | None


@contextlib.contextmanager
def running_stack(settings: dict[str, str] | None = None, *, on: tuple[int, ...] | None = None) -> Iterator[Stack]:
    """A stack with one device of all cores in `on` (default: all), without trainer, Flower and intake.

    `settings` are `ONDOL_…` variables on top.
    """
    on = on or cores()
    given = {**_QUIET, "ONDOL_DEVICES": f"cpu:1x{len(on)}", **(settings or {})}
    with tempfile.TemporaryDirectory(prefix="ondol-bench-", ignore_cleanup_errors=True) as folder:
        stack = Stack(Path(folder) / "data", given)
        try:
            with pinned(on):
                stack.start()
            yield stack
        finally:
            stack.stop()


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """An empty database on a PostgreSQL of the benchmark's own, with durable commits.

    ImportError where its wheel is not installed.
    """
    with running_postgres_server() as server:
        url = server.create_database()
        yield Postgres(url, _pid_of(server))
        server.drop_database(url)


@contextlib.contextmanager
def running_postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of the benchmark's own, with durable commits; its databases go with it. ImportError as above."""
    server = PostgresServer.start()
    try:
        _make_durable(server)
        yield server
    finally:
        server.stop()


def import_tiny(client: Ondol, folder: Path, *, hidden: int = 32) -> Path:
    """Import the tiny random model as `tiny`, and run it once; its source folder."""
    source = make_tiny_model(folder / "tiny-source", hidden=hidden)
    client.jobs.create("import", input={"path": str(source)}, options={"name": TINY}).result()
    client.embed("warm", model=TINY)
    return source


def version_folder(stack: Stack) -> Path:
    """The imported folder of the first model that the stack's workers have cached."""
    return next(file.parent for file in sorted((stack.data_dir / "cache").glob("*/ondol.json")))


def free_ports_from(num: int) -> int:
    """The first of `num` neighbouring free ports."""
    for first in range(20_000, 32_000, num):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + num):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError(f"no {num} neighbouring free ports")


def stop_in_order() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does, once: every `with` block stops what it started.

    Ctrl-C does so too where a shell in the background had it ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one would break off the stopping
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)


def _pid_of(server: PostgresServer) -> int | None:
    if server._folder is None:
        return None
    return int((server._folder / "p" / "postmaster.pid").read_text(encoding="ascii").splitlines()[0])


def _make_durable(server: PostgresServer) -> None:
    # The tests' server is started with fsync off, for speed; figures are taken with it on, as anybody would run it.
    server._administer("ALTER SYSTEM SET fsync = on")
    server._administer("ALTER SYSTEM SET full_page_writes = on")
    server._administer("SELECT pg_reload_conf()")
