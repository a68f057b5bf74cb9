from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ondol.control.supervise import Program, render_config
from ondol.control.up_lock import DataFolderInUse, locked_data_folder
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Parent:
    """A process that supervises two programs, each with a child of its own, as `ondol up` does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-m", "tests.setup.supervised_parent", str(folder)], cwd=ROOT)
        wait_until(lambda: len(self.programs()) == 4, within_s=20, what="two programs and their children")

    def descendants(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def programs(self) -> dict[int, str]:
        found = {}
        for process in self.descendants():
            try:
                command = " ".join(process.cmdline())
            except psutil.NoSuchProcess:  # it ended between the two looks
                continue
            if "supervised_program" in command and "launch.py" not in command:
                found[process.pid] = command
        return found

    def supervisord(self) -> psutil.Process:
        return psutil.Process(int((self.folder / "run" / "supervisord.pid").read_text()))


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    started = Parent(tmp_path)
    yield started
    if started.process.poll() is None:
        started.process.terminate()
    started.process.wait(20)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.integration
def test_sigterm_ends_everything(parent: Parent) -> None:
    processes = parent.descendants()
    parent.process.terminate()
    assert parent.process.wait(15) == 0
    assert all_gone(processes)


@pytest.mark.integration
def test_a_killed_program_is_started_again(parent: Parent) -> None:
    victim = next(pid for pid, command in parent.programs().items() if "first" in command and "child" not in command)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in parent.programs(), within_s=5, what="the program to end")
    wait_until(lambda: len(parent.programs()) == 4, within_s=20, what="the program and its child to be back")


@pytest.mark.integration
def test_nothing_outlives_a_killed_parent(parent: Parent) -> None:
    processes = parent.descendants()
    parent.process.kill()
    parent.process.wait(5)
    wait_until(lambda: all_gone(processes), within_s=15, what="all descendants to end")


@pytest.mark.integration
def test_nothing_outlives_a_killed_supervisor(parent: Parent) -> None:
    processes = parent.descendants()
    parent.supervisord().kill()
    assert parent.process.wait(15) == 1
    assert all_gone(processes)


@pytest.mark.integration
def test_the_folder_stays_locked_until_the_last_program_of_a_killed_parent_ended(parent: Parent) -> None:
    supervisord = parent.supervisord()
    supervisord.suspend()
    parent.process.kill()
    parent.process.wait(5)
    with pytest.raises(DataFolderInUse, match=str(parent.process.pid)), locked_data_folder(parent.folder / "run"):
        pass
    supervisord.resume()
    wait_until(lambda: not supervisord.is_running(), within_s=15, what="supervisord to end")
    with locked_data_folder(parent.folder / "run"):
        pass


@pytest.mark.unit
def test_a_percent_sign_survives_the_configuration(tmp_path: Path) -> None:
    program = Program("a", ["run", "50% off"], stop_wait_s=3, environment={"URL": "x%20y"})
    text = render_config([program], pid_file=tmp_path / "pid", log_dir=tmp_path)
    assert "'50%% off'" in text
    assert 'URL="x%%20y"' in text
