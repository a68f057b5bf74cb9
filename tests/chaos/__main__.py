"""`python -m tests.chaos --seed 7 --minutes 2 --database sqlite`: break everything at random, then check what is left.

Exit codes: 0 all invariants hold, 1 some do not (history and logs are kept, their folder is printed), 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.plan import KINDS
from tests.chaos.run import Options, Outcome, remove, run_chaos
from tests.chaos.world import Size


def main(argv: list[str]) -> int:
    """Run once and print the report."""
    options, arguments = _parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends by way of `finally`: no process is left
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="ondol-chaos-"))
    print(f"chaos: {options.command()}; files in {folder}", flush=True)
    try:
        outcome = run_chaos(options, folder)
    except ValueError as exc:
        print(f"chaos: {exc}", file=sys.stderr)
        return 2
    except BaseException:
        print(f"chaos: the run itself broke; history and logs in {folder}", file=sys.stderr)
        raise
    print_report(outcome)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(outcome.report, indent=1) + "\n", encoding="utf-8")
    if outcome.violations:
        print(f"chaos: history and logs are in {folder}\nrepeat: {options.command()}")
        return 1
    if not arguments.keep:
        remove(folder)
    return 0


def print_report(outcome: Outcome) -> None:
    """The report in lines, the verdict last."""
    report = outcome.report
    for name in ("faults", "jobs", "attempts", "repairs", "restarts", "answers", "took"):
        print(f"{name:>10}: {', '.join(f'{key} {value}' for key, value in report[name].items()) or 'none'}")
    print(f"  accepted: {report['accepted']} jobs in answers, {report['shards']} shards, {report['lost']} lost")
    print(f"    fenced: {report['stale_writes_refused']} stale writes were refused")
    for violation in outcome.violations:
        print(f" VIOLATION: {violation}")
    print("all invariants hold" if not outcome.violations else f"{len(outcome.violations)} violations", flush=True)


def _parse(argv: list[str]) -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides every choice")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long things are broken")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--faults", default="", help=f"only these, comma-separated: {', '.join(KINDS)}")
    parser.add_argument("--calm", action="store_true", help="break nothing: nothing may need a repair")
    parser.add_argument("--clients", type=int, default=4, help="threads that submit, cancel, read")
    parser.add_argument("--no-trainer", action="store_true", help="without fine-tunes, which need torch")
    parser.add_argument("--real-device", action="store_true", help="the product's device process; results unchecked")
    parser.add_argument("--drain-s", type=float, default=90.0, help="longest wait for all jobs to end, seconds")
    parser.add_argument("--folder", type=Path, help="where history and logs go; default: a new temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep that folder although all went well")
    parser.add_argument("--out", type=Path, help="also write the report there, as JSON")
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0 or arguments.clients < 1:
        parser.error("--minutes is above 0, --clients at least 1")
    options = Options(
        seed=arguments.seed,
        seconds=arguments.minutes * 60,
        size=Size(
            is_postgresql=arguments.database == "postgresql",
            has_trainer=not arguments.no_trainer,
            has_real_device=arguments.real_device,
            is_patient=arguments.calm,
        ),
        kinds=tuple(name for name in arguments.faults.split(",") if name),
        is_calm=arguments.calm,
        num_clients=arguments.clients,
        drain_limit_s=arguments.drain_s,
    )
    return options, arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
