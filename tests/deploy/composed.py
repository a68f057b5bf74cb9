"""The services of docker-compose.yml as processes of this host: the file's own commands, variables and health checks.

What a container would give them is replaced, and nothing else: paths of volumes and secrets by folders, names and ports
of other services by loopback addresses, and PostgreSQL's image by the tests' server.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ondol.control.embedded_redis import find_redis_binary
from ondol.control.host import free_port
from ondol.control.launch import launch_command
from tests.deploy.compose_file import Service, load_services
from tests.waiting import wait_until

HEALTHY_LIMIT_S = 120
RUN_LIMIT_S = 60
_PORT_SETTINGS = ("ONDOL_PORT", "ONDOL_FLOWER_PORT", "ONDOL_METRICS_PORT")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service runs instead of a container."""

    environment: dict[str, str]
    replaced: dict[str, str]
    folder: Path

    def outside(self, text: str) -> str:
        """A string of the file with the container's paths, hosts and ports replaced."""
        # In one pass: what was put in must not be taken for a path of the container.
        inside = "|".join(re.escape(text) for text in sorted(self.replaced, key=len, reverse=True))
        return re.sub(rf"(?<![\w.])(?:{inside})(?![\w.])", lambda match: self.replaced[match[0]], text)


class Composed:
    """The services that a profile starts. `close()` ends what still runs."""

    def __init__(self, folder: Path, *, profile: str, database_url: str, passwords: Mapping[str, str]) -> None:
        self._folder = folder
        self._database_url = database_url
        self._passwords = passwords
        self._redis_port = str(free_port())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._places: dict[str, Place] = {}
        self.services = {
            name: service
            for name, service in load_services({"ONDOL_WORKER_CORES": "0", "ONDOL_TRAINER_CORES": "0"}).items()
            if name != "postgres" and (not service.profiles or profile in service.profiles)
        }

    def place(self, name: str) -> Place:
        """Where this service runs; made at the first look."""
        if name not in self._places:
            self._places[name] = self._make_place(self.services[name])
        return self._places[name]

    def bring_up(self) -> None:
        """Start all services as `depends_on` says, and wait until all of them are healthy."""
        waiting = dict(self.services)
        while waiting:
            ready = [one for one in waiting.values() if not any(name in waiting for name in one.needs)]
            assert ready, f"these wait for each other: {sorted(waiting)}"
            for service in ready:
                for needed, condition in service.needs.items():
                    if needed in self.services:
                        self._wait_for(needed, condition)
                self.start(service.name)
                del waiting[service.name]
        for name, service in self.services.items():
            if "healthcheck" in service.fields:
                self.wait_until_healthy(name)

    def start(self, name: str, **changed: str) -> None:
        """Start one service's command, with variables changed on the way."""
        place, service = self.place(name), self.services[name]
        argv = [place.outside(argument) for argument in service.command]
        command = launch_command(argv, parent=str(os.getpid()), death_signal="KILL")
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=place.folder,
                env=place.environment | changed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(self, name: str, *argv: str) -> str:
        """What a command prints in a service's place, as with `docker compose exec`."""
        done = self._run(name, list(argv))
        assert done.returncode == 0, f"{argv} in {name}: {done.stdout}{done.stderr}"
        return done.stdout

    def is_healthy(self, name: str) -> bool:
        """Whether the service's own health check passes now."""
        return self._health(name).returncode == 0

    def wait_until_healthy(self, name: str) -> None:
        """AssertionError with log and last health check when the service ends or does not get healthy."""
        last: list[str] = []
        next_check_at = 0.0

        def passes() -> bool:
            nonlocal next_check_at
            process = self._processes[name]
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log_of(name)}"
            if time.monotonic() < next_check_at:
                return False
            checked = self._health(name)
            next_check_at = time.monotonic() + self.services[name].health_pause_s
            last[:] = [checked.stdout, checked.stderr]
            return checked.returncode == 0

        try:
            wait_until(passes, within_s=HEALTHY_LIMIT_S, what=f"{name} to be healthy")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\nhealth check: {last}\n{self.log_of(name)}") from None

    def stop(self, name: str) -> int:
        """SIGTERM; the exit code. TimeoutExpired if the service needs more than its grace period."""
        process = self._processes[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(self.services[name].stop_grace_s)

    def log_of(self, name: str) -> str:
        """The end of what the service wrote."""
        return self._log(name).read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """End what still runs."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.kill()
                process.wait(RUN_LIMIT_S)

    def _wait_for(self, needed: str, condition: str) -> None:
        if condition == "service_healthy":
            self.wait_until_healthy(needed)
            return
        assert condition == "service_completed_successfully", condition
        code = self._processes[needed].wait(RUN_LIMIT_S)
        assert code == 0, f"{needed} ended with {code}:\n{self.log_of(needed)}"

    def _health(self, name: str) -> subprocess.CompletedProcess[str]:
        return self._run(name, [self.place(name).outside(part) for part in self.services[name].health_command])

    def _run(self, name: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
        place = self.place(name)
        return subprocess.run(
            argv,
            cwd=place.folder,
            env=place.environment,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _make_place(self, service: Service) -> Place:
        secrets = self._secrets_of(service)
        replaced = {"/run/secrets": str(secrets), **self._mounts_of(service)}
        replaced |= {"redis:6379": f"127.0.0.1:{self._redis_port}", "6379": self._redis_port, "0.0.0.0": "127.0.0.1"}
        folder = Path(replaced.get("/data", str(secrets)))
        place = Place({}, replaced, folder)
        programs = f"{Path(sys.executable).parent}:{find_redis_binary().parent}:/usr/bin:/bin"
        # As in the images: Python, our commands, and a home that is temporary; nothing of this process's environment.
        place.environment.update(PATH=programs, HOME=str(folder), PYTHONUNBUFFERED="1", HF_HUB_OFFLINE="1")
        place.environment.update({name: place.outside(value) for name, value in service.environment.items()})
        if "ONDOL_DATABASE_URL" in service.environment:
            place.environment.update(ONDOL_DATABASE_URL=self._database_url, ONDOL_SECRETS_DIR=str(secrets))
        for name in _PORT_SETTINGS:
            if name in place.environment:
                place.environment[name] = str(free_port())
        return place

    def _secrets_of(self, service: Service) -> Path:
        folder = self._folder / "secrets" / service.name
        folder.mkdir(parents=True)
        for name in service.fields.get("secrets", []):
            (folder / name).write_text(self._passwords[name])
        return folder

    def _mounts_of(self, service: Service) -> dict[str, str]:
        mounts = {}
        for text in service.fields.get("volumes", []):
            volume, inside, *_ = text.split(":")
            mounts[inside] = self._folder / "volumes" / volume
        for text in service.fields.get("tmpfs", []):
            inside = text.partition(":")[0]
            mounts[inside] = self._folder / "tmpfs" / service.name / inside[1:]
        for folder in mounts.values():
            folder.mkdir(parents=True, exist_ok=True)
        return {inside: str(folder) for inside, folder in mounts.items()}
