"""The check of a fine-tune's data: `python -m workers.training.check --plan plan.json`.

Standard output gets one line of JSON: `{"ok":true,"report":…}` or `{"ok":false,"error":{…}}`, and the status is 0 in
both cases. Any other status means that the check itself failed. It reads untrusted files: no network, bounded memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ondol.contract.errors import InvalidPayload, OndolError
from workers.importing.limits import limit_process
from workers.training.plan import parse_plan, report_as_dict


def main() -> int:
    """Check the data of one plan as the command line says."""
    arguments = _parser().parse_args()
    # Libraries print to standard output when they please; the answer has it alone.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parent_pid = arguments.parent_pid or os.getppid()
    limit_process(memory_bytes=arguments.memory_mb * 1024 * 1024, parent_pid=parent_pid)
    with answer:
        answer.write(_check(arguments.plan, arguments.memory_mb) + "\n")
    return 0


def _check(plan_path: Path, memory_mb: int) -> str:
    try:
        # Imported here: the limits must hold before a library that reads files is loaded.
        from workers.training.data.dataset import load_dataset

        report = load_dataset(parse_plan(plan_path.read_bytes())).report
    except OndolError as exc:
        return json.dumps({"ok": False, "error": exc.as_dict()})
    except MemoryError:
        message = (
            f"the data need more than the {memory_mb:,} MiB of memory that a check may use; use fewer or shorter rows"
        )
        return json.dumps({"ok": False, "error": InvalidPayload(message, param="options.train_file").as_dict()})
    return json.dumps({"ok": True, "report": report_as_dict(report)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.training.check", description="Check the data of one fine-tune."
    )
    parser.add_argument("--plan", type=Path, required=True, help="plan.json, whose report is not there yet")
    parser.add_argument("--memory-mb", type=int, default=16_384, help="limit of the address space, in MiB")
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process, the parent, is gone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
