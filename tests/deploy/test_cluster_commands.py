"""The README's commands for a cluster, line by line, against PostgreSQL and a Redis with a password."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from ondol import Ondol
from ondol.control.healthcheck import CHECKS
from ondol.control.host import free_port
from ondol.control.launch import launch_command
from tests.deploy.documents import README, find_block, run_shell
from tests.publishing import publish_folder
from tests.servers import RedisServer
from tests.waiting import answers_well, wait_until

pytestmark = pytest.mark.integration

HEALTHY_LIMIT_S = 120
STOP_LIMIT_S = 30
JOB_LIMIT_S = 120
_ASSIGNMENT = re.compile(r"(?P<name>[A-Z_]+)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServerLine:
    """A line that starts a process and stays: what it sets for it, and its argument list."""

    variables: dict[str, str]
    argv: list[str]

    @property
    def name(self) -> str:
        """Which process of Ondol it starts."""
        return self.argv[1]


@dataclass(slots=True)
class Commands:
    """The block, every line of it read; ValueError names a line that is of no known sort."""

    exported: dict[str, str] = field(default_factory=dict)
    administration: list[str] = field(default_factory=list)
    servers: dict[str, ServerLine] = field(default_factory=dict)

    def read(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if words[0] == "export":
            self.exported |= dict(map(_assignment, words[1:]))
        elif "&&" in words:
            self.administration.append(line)
        else:
            self._read_server(line, words)

    def _read_server(self, line: str, words: list[str]) -> None:
        num = next(i for i, word in enumerate(words) if not _ASSIGNMENT.fullmatch(word))
        server = ServerLine(dict(map(_assignment, words[:num])), words[num:])
        if server.argv[0] != "ondol" or server.name not in CHECKS or server.name in self.servers:
            raise ValueError(f"not a line that starts a process for the first time: {line}")
        self.servers[server.name] = server


class Cluster:
    """The processes of the block on one host. `close()` ends what still runs."""

    def __init__(self, folder: Path, commands: Commands) -> None:
        self.folder = folder
        self.port = free_port()
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ports = {"ONDOL_PORT": str(self.port), "ONDOL_FLOWER_PORT": str(free_port())}
        self._environment = {**os.environ, "PATH": programs, **ports, **commands.exported}
        self._servers = commands.servers
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a line's command with the line's variables."""
        server = self._servers[name]
        command = launch_command(server.argv, parent=str(os.getpid()), death_signal="KILL")
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment | server.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_healthy(self, name: str) -> bool:
        """Whether the process's health check passes; AssertionError with its log when it has ended."""
        process = self.processes[name]
        log = (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"{name} ended with {process.returncode}:\n{log}"
        command = [sys.executable, "-m", "ondol.control.healthcheck", name]
        environment = self._environment | self._servers[name].variables
        return (
            subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, check=False).returncode == 0
        )

    def stop(self) -> dict[str, int]:
        """SIGTERM to all; the exit codes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(STOP_LIMIT_S) for name, process in self.processes.items()}

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(STOP_LIMIT_S)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@contextmanager
def running(folder: Path, commands: Commands) -> Iterator[Cluster]:
    """All processes of the block, healthy."""
    cluster = Cluster(folder, commands)
    try:
        for name in commands.servers:
            cluster.start(name)
        wait_until(lambda: answers_well(cluster.port, "/readyz"), within_s=HEALTHY_LIMIT_S, what="the api to be ready")
        for name in commands.servers:
            wait_until(
                lambda name=name: cluster.is_healthy(name),  # type: ignore[misc]  # bound at definition
                within_s=HEALTHY_LIMIT_S,
                what=f"{name} to be healthy",
            )
        yield cluster
    finally:
        cluster.close()


def check_device_process(worker: subprocess.Popen[bytes]) -> None:
    """The worker's device process was not told where database, Redis and store are."""
    (device,) = [one for one in psutil.Process(worker.pid).children() if "workers.device" in one.cmdline()]
    assert {name for name in device.environ() if name.startswith("ONDOL_")} == {"ONDOL_LOG_LEVEL", "ONDOL_LOG_FORMAT"}


def test_the_cluster_commands_of_the_readme_start_a_cluster(
    tmp_path: Path, postgresql_url: str, own_redis: RedisServer, tiny_version: Path
) -> None:
    store_url = f"file://{tmp_path / 'store'}"
    script = substituted(
        find_block(README, "On a cluster", 1).text,
        {
            "postgresql+psycopg://ondol@db/ondol": postgresql_url,
            "redis://:password@redis:6379/0": own_redis.url,
            "s3://bucket/ondol": store_url,
            "cuda:0": "cpu:1",  # not the default, so that it is seen to arrive
        },
    )
    commands = Commands()
    for line in script.splitlines():
        commands.read(line)
    assert commands.servers.keys() == CHECKS.keys(), "each process has its line"
    assert commands.exported.keys() == {"ONDOL_DATABASE_URL", "ONDOL_REDIS_URL", "ONDOL_STORE_URL"}
    (administration,) = commands.administration
    printed = run_shell(administration, folder=tmp_path, environment=commands.exported)
    key = printed.splitlines()[-1]
    publish_folder(tiny_version, "tiny", store_url=store_url, database_url=postgresql_url)
    with running(tmp_path, commands) as cluster:
        url = f"http://127.0.0.1:{cluster.port}"
        assert httpx.get(f"{url}/v1/jobs", trust_env=False).status_code == 401
        with Ondol(url, api_key=key) as client:
            job = client.jobs.create("embedding", model="tiny", input=["a warm floor"]).wait(timeout_s=JOB_LIMIT_S)
            assert job.status == "succeeded", job.error
            assert job.vectors().shape == (1, 32)
        check_device_process(cluster.processes["worker"])
        assert cluster.stop() == dict.fromkeys(commands.servers, 0)


@pytest.mark.parametrize("line", ["ondol apis", "rm -r x", "A=b ondol db current", "for x in y"])
def test_a_line_of_an_unknown_sort_is_not_left_out(line: str) -> None:
    with pytest.raises(ValueError, match="not a line"):
        Commands().read(line)


def substituted(script: str, values: dict[str, str]) -> str:
    """The script with each of these replaced, once; AssertionError for one that does not stand there once."""
    for there, here in values.items():
        assert script.count(there) == 1, there
        script = script.replace(there, shlex.quote(here))
    return script


def _assignment(word: str) -> tuple[str, str]:
    match = _ASSIGNMENT.fullmatch(word)
    if match is None:
        raise ValueError(f"not an assignment: {word}")
    return match["name"], match["value"]
