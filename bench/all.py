"""The whole suite, one line after the other, each in a process of its own.

`python -m bench.all [--full] [--only bulk,calls]`

A line that fails or takes too long is named at the end and the others go on; Ctrl-C stops the running line, which stops
what it started. Exit code 1 if a line failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.report import RESULTS

LINES = ("bulk", "calls", "jobs", "mixed", "devices", "scale", "million")
FULL_ONLY = frozenset({"million"})
QUICK_LIMIT_S, FULL_LIMIT_S = 240.0, 1_800.0
STOP_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a line went."""

    line: str
    seconds: float
    failure: str | None


def main(argv: list[str]) -> int:
    """Run the lines and say how they went."""
    parser = argparse.ArgumentParser(prog="python -m bench.all", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the published sizes, up to 40 minutes; default: 5 minutes")
    parser.add_argument("--only", help=f"lines, comma-separated, of {', '.join(LINES)}")
    parser.add_argument("--rounds", type=int, help="of each line; default: 5 with --full, else 1")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parsed = parser.parse_args(argv)
    chosen = choose(parsed.only, is_full=parsed.full)
    rounds = parsed.rounds or (5 if parsed.full else 1)
    flags = ["--rounds", str(rounds), "--out", str(parsed.out), *(["--full"] if parsed.full else [])]
    outcomes = []
    for line in chosen:
        print(f"\n== {line}", flush=True)
        outcomes.append(run(line, flags, FULL_LIMIT_S if parsed.full else QUICK_LIMIT_S))
    print()
    for outcome in outcomes:
        print(f"{outcome.line:10} {outcome.seconds:7.0f} s   {outcome.failure or 'done'}")
    return int(any(outcome.failure for outcome in outcomes))


def choose(only: str | None, *, is_full: bool) -> tuple[str, ...]:
    """The lines to run, in their order; SystemExit names one that there is not."""
    if only is None:
        return tuple(line for line in LINES if is_full or line not in FULL_ONLY)
    named = [name.strip() for name in only.split(",")]
    for name in named:
        if name not in LINES:
            raise SystemExit(f"there is no line {name!r}; there are {', '.join(LINES)}")
    return tuple(line for line in LINES if line in named)


def run(line: str, flags: list[str], limit_s: float) -> Outcome:
    """Run one line to its end, or to the limit."""
    began = time.monotonic()
    # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
    child = subprocess.Popen([sys.executable, "-m", f"bench.{line}", *flags], start_new_session=True)
    failure = None
    try:
        code = child.wait(limit_s)
        failure = None if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        stop(child)
        failure = f"stopped: it took longer than {limit_s:.0f} s"
    except KeyboardInterrupt:
        stop(child)
        raise SystemExit("stopped") from None
    return Outcome(line, time.monotonic() - began, failure)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Let the line stop what it started; the rest of its processes end with it."""
    child.terminate()
    try:
        child.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    from bench.stacks import stop_in_order

    stop_in_order()
    sys.exit(main(sys.argv[1:]))
