"""The planning child: `python -m workers.sharding --plan plan.json`.

Standard output gets one line of JSON: `{"ok":true,"report":…}` or `{"ok":false,"error":{…}}`, and the status is 0 in
both cases. Any other status means that the child itself failed. It reads untrusted files: no network, bounded memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from ondol.contract.errors import InvalidPayload, OndolError
from workers.importing.limits import limit_process

NICENESS = 10
"""The device process beside it, whose cores it shares, goes first."""


def main() -> int:
    """Cut the file of one plan as the command line says."""
    arguments = _parser().parse_args()
    # Libraries print to standard output when they please; the answer has it alone.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parent_pid = arguments.parent_pid or os.getppid()
    limit_process(memory_bytes=arguments.memory_mb * 1024 * 1024, parent_pid=parent_pid)
    os.nice(NICENESS)
    with answer:
        answer.write(_cut(arguments.plan, arguments.memory_mb) + "\n")
    return 0


def _cut(plan_path: Path, memory_mb: int) -> str:
    try:
        # Imported here: the limits must hold before a library that reads files is loaded.
        from models_store.failures import translated
        from workers.sharding.cut import cut_file
        from workers.sharding.plan import read_plan

        with translated("cutting the input file"):
            report = cut_file(read_plan(plan_path))
    except OndolError as exc:
        return json.dumps({"ok": False, "error": exc.as_dict()})
    except MemoryError:
        message = (
            f"the file needs more than the {memory_mb:,} MiB of memory that reading it may use; "
            "write one JSON object a line, or split it into several files"
        )
        return json.dumps({"ok": False, "error": InvalidPayload(message, param="input_file").as_dict()})
    return json.dumps({"ok": True, "report": asdict(report)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.sharding", description="Cut one input file into shards.")
    parser.add_argument("--plan", type=Path, required=True, help="plan.json, as the supervisor writes it")
    parser.add_argument("--memory-mb", type=int, default=8_192, help="limit of the address space, in MiB")
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process, the parent, is gone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
