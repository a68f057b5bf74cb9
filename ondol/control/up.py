"""`ondol up`: everything on this machine with one command, and nothing of it left when it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from ondol.contract.devices import parse_devices
from ondol.contract.errors import Conflict, InvalidPayload, OndolError
from ondol.control.host import PortTaken, count_gpus, free_port, http_address, is_port_free, usable_cores
from ondol.control.launch import launch_command
from ondol.control.stop_signals import StopSignals
from ondol.control.supervise import Supervisor
from ondol.control.up_flower import PlannedFlower, plan_flower
from ondol.control.up_lock import locked_data_folder
from ondol.control.up_model import import_default_model
from ondol.control.up_programs import child_environment, plan_programs
from ondol.control.up_ready import Start
from ondol.control.up_watch import WATCH_EVERY_S, LoopWatch
from ondol.setting_values import is_loopback
from ondol.settings import (
    EXIT_WRONG_USE,
    IntakeSettings,
    ReconcilerSettings,
    TrainerSettings,
    UpSettings,
    WorkerSettings,
    load_settings,
)

_READY_POLL_S = 0.1
_HTTP_TIMEOUT_S = 10.0


class StartFailed(OndolError):
    """The stack did not come up; the message says where to look."""

    code = "start_failed"


def run_up(settings: UpSettings) -> int:
    """Start everything, say so when it is ready, stay until SIGTERM or Ctrl-C, stop everything. Main thread only.

    Returns the exit code: 0 stopped as asked, 1 something broke, 2 wrong use (folder in use, port taken, no such
    device), each of the last two with one line on stderr.
    """
    load_settings(TrainerSettings)
    load_settings(IntakeSettings)
    load_settings(ReconcilerSettings)  # what a child would refuse is refused here, in one line, before anything starts
    worker = load_settings(WorkerSettings)
    try:
        with locked_data_folder(settings.run_dir) as lock_fd, StopSignals() as signals:
            return _Up(settings, worker, signals).run(lock_fd)
    except (Conflict, InvalidPayload) as exc:
        _complain(str(exc))
        return EXIT_WRONG_USE
    except OndolError as exc:
        _complain(str(exc))
        return 1


@dataclass(slots=True)
class _Up:
    settings: UpSettings
    worker: WorkerSettings
    signals: StopSignals
    flower: PlannedFlower | None = None

    def run(self, lock_fd: int) -> int:
        url_file = self.settings.run_dir / "api.url"
        url_file.unlink(missing_ok=True)  # of an earlier `up` that was killed
        port = _choose_port(self.settings)
        environment = child_environment(self.settings) | {"ONDOL_PORT": str(port)}
        environment.setdefault("ONDOL_PUBLIC_URL", http_address(self.settings.host, port))
        devices = parse_devices(self.settings.devices, cores=usable_cores(), num_gpus=count_gpus())
        self.flower = plan_flower(self.settings, _say)
        programs = plan_programs(self.settings, self.worker, devices, self.flower)
        environment["ONDOL_AUTH"] = self._choose_auth(_prepare_database(environment))
        supervisor = Supervisor(self.settings.run_dir, self.settings.log_dir, programs)
        try:
            if not self.signals.is_stop_requested:
                start = Start.now(devices)
                supervisor.start(environment, inherited_fds=[lock_fd])
                self._serve(supervisor, start, http_address(self.settings.host, port), url_file)
            return 0
        finally:
            url_file.unlink(missing_ok=True)
            supervisor.stop(limit_s=self.settings.stop_limit_s)

    def _serve(self, supervisor: Supervisor, start: Start, url: str, url_file: Path) -> None:
        with httpx.Client(base_url=url, timeout=_HTTP_TIMEOUT_S, trust_env=False, headers=self._headers()) as client:
            if not self._wait_until_ready(client, supervisor, start):
                return
            url_file.write_text(url + "\n", encoding="utf-8")
            if self.settings.import_default_model:
                self._import_default_model(client)
        ready = f"Ondol is ready: {url}  (data {self.settings.data_dir}, logs {self.settings.log_dir}; Ctrl-C stops it)"
        _say(f"{ready}\n{self.flower.line()}" if self.flower else ready)
        watch = LoopWatch(self.settings.run_dir, ("reconciler",), _say)
        while not self.signals.wait(WATCH_EVERY_S):
            _must_live(supervisor, self.settings)
            watch.look()

    def _wait_until_ready(self, client: httpx.Client, supervisor: Supervisor, start: Start) -> bool:
        limit_s = self.settings.ready_limit_s
        deadline = time.monotonic() + limit_s
        while (missing := start.what_is_missing(client)) is not None:
            if self.signals.wait(_READY_POLL_S):
                return False
            _must_live(supervisor, self.settings)
            if time.monotonic() >= deadline:
                raise StartFailed(f"not ready within {limit_s:g} s: {missing}, in {self.settings.log_dir}")
        return True

    def _import_default_model(self, client: httpx.Client) -> None:
        try:
            import_default_model(client, self.signals, _say)
        except httpx.HTTPError as exc:  # the stack is up all the same; the person can import a model later
            _say(f"The default model was not imported: {exc}")

    def _choose_auth(self, has_keys: bool) -> str:
        if "auth" in self.settings.model_fields_set:
            return self.settings.auth
        return "off" if is_loopback(self.settings.host) and not has_keys else "keys"

    def _headers(self) -> dict[str, str]:
        key = self.settings.api_key
        return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _prepare_database(environment: dict[str, str]) -> bool:
    """Bring the schema up to date in a child; whether there are API keys. StartFailed with the child's last line."""
    command = launch_command([sys.executable, "-P", "-m", "ondol.control.up_database"], parent=str(os.getpid()))
    # A session of its own: Ctrl-C must not tear a migration.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()
        raise StartFailed(
            f"the database cannot be prepared: {reason[-1] if reason else f'exit code {done.returncode}'}"
        )
    return bool(json.loads(done.stdout)["has_keys"])


def _choose_port(settings: UpSettings) -> int:
    if settings.port == 0:
        return free_port(settings.host)
    if not is_port_free(settings.host, settings.port):
        message = f"port {settings.port} on {settings.host} is taken; choose another by ONDOL_PORT (0 takes a free one)"
        raise PortTaken(message)
    return settings.port


def _must_live(supervisor: Supervisor, settings: UpSettings) -> None:
    if not supervisor.is_running:
        raise StartFailed(f"the supervisor ended; the reason is in {settings.log_dir}/supervisord.err.log")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _complain(line: str) -> None:
    sys.stderr.write(line + "\n")
