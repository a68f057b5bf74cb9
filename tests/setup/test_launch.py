from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ondol.control.launch import launch_command

pytestmark = pytest.mark.integration


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_the_launcher_becomes_the_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "parent.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    command = [sys.executable, "-c", "import os, sys; print(os.getppid(), sys.argv[1])", "a b"]
    for parent in (str(os.getpid()), str(pid_file)):
        done = run(launch_command(command, parent=parent))
        assert done.stdout == f"{os.getpid()} a b\n"


def test_a_command_whose_parent_is_gone_is_not_started() -> None:
    done = run(launch_command([sys.executable, "-c", "print('started')"], parent="999999999"))
    assert done.returncode == 3
    assert done.stdout == ""
