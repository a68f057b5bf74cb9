"""Start a program that dies with its parent: `launch.py SIGNAL PARENT [--reap] -- command …`.

SIGNAL is what the program gets when its parent ends (TERM, KILL); PARENT is the parent's process id, or a file that
holds it. `--reap` makes the program the one that inherits orphans among its descendants. Run by path with
`python -I -S`, so that it starts in milliseconds; it becomes the command, no process of its own stays. Where there
is no `prctl` (not Linux) it only starts the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_EXIT_PARENT_GONE = 3


def launch_command(command: list[str], *, parent: str, death_signal: str = "TERM", reap: bool = False) -> list[str]:
    """The command line that runs `command` under this launcher. `parent`: a process id, or the file that holds it."""
    flags = ["--reap"] if reap else []
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), death_signal, parent, *flags, "--", *command]  # noqa: PTH100 - pathlib would cost a third of the start-up time


def become_subreaper(is_on: bool = True) -> None:
    """Whether orphans among this process's descendants become its children (Linux; elsewhere nothing happens)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(is_on))


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the command. Exits 3 if the parent is gone already."""
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    _prctl(_PR_SET_PDEATHSIG, getattr(signal, f"SIG{options[0]}"))
    if os.getppid() != _read_pid(options[1]):  # it ended before the line above: no signal would come any more
        raise SystemExit(_EXIT_PARENT_GONE)
    if "--reap" in options:
        become_subreaper()
    os.execvp(command[0], command)


def _read_pid(parent: str) -> int:
    if parent.isdigit():
        return int(parent)
    with open(parent, encoding="ascii") as file:  # noqa: PTH123 - pathlib would cost a third of the start-up time
        return int(file.read())


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")


if __name__ == "__main__":
    main(sys.argv[1:])
