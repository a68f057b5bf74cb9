"""Keeps a set of programs running, and ends all of them: supervisord as a child that cannot outlive this process.

Every program starts under `launch.py`, so that it ends when supervisord does, whatever ended it. Programs are started
again for ever, with a pause that grows by a second for each start that failed at once.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ondol.control.embedded_redis import write_secret
from ondol.control.launch import become_subreaper, launch_command

SERVER_PRIORITY = 10
PROGRAM_PRIORITY = 20
_LOG_BYTES = "10MB"
_LOG_BACKUPS = 3
_FOR_EVER = 1_000_000_000
_LAST_MOMENT_S = 2.0


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised program. Those with `is_server` start before the others and stop after them."""

    name: str
    command: Sequence[str]
    stop_wait_s: int
    environment: Mapping[str, str] = field(default_factory=dict)
    is_server: bool = False


class Supervisor:
    """Runs programs under supervisord; start and stop it from the main thread (a child ends with its parent thread)."""

    def __init__(self, run_dir: Path, log_dir: Path, programs: Sequence[Program]) -> None:
        self._pid_file = run_dir / "supervisord.pid"
        self._config = run_dir / "supervisord.conf"
        self._log_dir = log_dir
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str], *, inherited_fds: Iterable[int] = ()) -> None:
        """Start supervisord and through it the programs. `inherited_fds` stay open in it for as long as it lives."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._pid_file.unlink(missing_ok=True)
        write_secret(self._config, render_config(self._programs, pid_file=self._pid_file, log_dir=self._log_dir))
        command = [sys.executable, "-P", "-m", "supervisor.supervisord", "--nodaemon", "-c", str(self._config)]
        become_subreaper()
        with (self._log_dir / "supervisord.err.log").open("ab") as errors:
            self._process = subprocess.Popen(
                launch_command(command, parent=str(os.getpid()), reap=True),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=dict(environment),
                pass_fds=tuple(inherited_fds),
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others in order
            )

    @property
    def is_running(self) -> bool:
        """Whether supervisord lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self, *, limit_s: float) -> None:
        """End everything, in order; what is left after the limit is killed. Blocks until nothing is left."""
        if self._process is None:
            return
        if self.is_running:
            self._process.terminate()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _end_orphans(_LAST_MOMENT_S)
        become_subreaper(False)
        self._process = None


def render_config(programs: Sequence[Program], *, pid_file: Path, log_dir: Path) -> str:
    """The text of supervisord's configuration file."""
    sections = [
        _section(
            "supervisord",
            {
                "nodaemon": "true",
                "silent": "true",
                "pidfile": _escape(str(pid_file)),
                "logfile": _escape(str(log_dir / "supervisord.log")),
                "logfile_maxbytes": _LOG_BYTES,
                "logfile_backups": str(_LOG_BACKUPS),
                "childlogdir": _escape(str(log_dir)),
            },
        )
    ]
    sections += [_program_section(program, pid_file, log_dir) for program in programs]
    # One group, so that all of them get SIGTERM at once and not one after the other; the servers follow.
    members = [program.name for program in programs if not program.is_server]
    if members:
        sections.append(_section("group:ondol", {"programs": ",".join(members), "priority": str(PROGRAM_PRIORITY)}))
    return "\n".join(sections)


def _program_section(program: Program, pid_file: Path, log_dir: Path) -> str:
    environment = ",".join(f'{name}="{_escape(value)}"' for name, value in program.environment.items())
    values = {
        "command": _escape(shlex.join(launch_command(list(program.command), parent=str(pid_file)))),
        "priority": str(SERVER_PRIORITY if program.is_server else PROGRAM_PRIORITY),
        "autorestart": "true",
        "startsecs": "1",
        "startretries": str(_FOR_EVER),
        "stopsignal": "TERM",
        "stopwaitsecs": str(program.stop_wait_s),
        "killasgroup": "true",
        "umask": "077",
        "redirect_stderr": "true",
        "stdout_logfile": _escape(str(log_dir / f"{program.name}.log")),
        "stdout_logfile_maxbytes": _LOG_BYTES,
        "stdout_logfile_backups": str(_LOG_BACKUPS),
    }
    if environment:
        values["environment"] = environment
    return _section(f"program:{program.name}", values)


def _section(name: str, values: Mapping[str, str]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _end_orphans(limit_s: float) -> None:
    """Wait for what supervisord left behind (it was killed, or a grandchild lingers), then kill it."""
    orphans = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(orphans, timeout=limit_s)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=limit_s)
