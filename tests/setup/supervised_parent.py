"""Supervises two programs until SIGTERM; exit code 1 when the supervisor ends by itself. Argument: a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ondol.control.stop_signals import StopSignals
from ondol.control.supervise import Program, Supervisor
from ondol.control.up_lock import locked_data_folder


def main(folder: Path) -> int:
    program = str(Path(__file__).with_name("supervised_program.py"))
    programs = [
        Program(name, [sys.executable, program, name], stop_wait_s=3, is_server=name == "second")
        for name in ("first", "second")
    ]
    supervisor = Supervisor(folder / "run", folder / "log", programs)
    with locked_data_folder(folder / "run") as lock_fd, StopSignals() as signals:
        supervisor.start(os.environ, inherited_fds=[lock_fd])
        while not signals.wait(30) and supervisor.is_running:
            pass
        supervisor.stop(limit_s=10)
        return 0 if signals.is_stop_requested else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
