"""The import child: `python -m workers.importing --source DIR --target DIR [--convert-bin]`.

Standard output gets one line of JSON: `{"ok":true,"spec":…,"warnings":[…]}` or `{"ok":false,"error":{…}}`, and the
status is 0 in both cases. Any other status means that the child itself failed. Logs go to standard error.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
from pathlib import Path

from ondol.contract.errors import ModelRefused, OndolError
from ondol.contract.model_spec import dump_model_spec
from workers.absent import UNUSED, leave_out
from workers.importing.limits import limit_process


def main() -> int:
    """Run one import as the command line says."""
    arguments = _parser().parse_args()
    # Libraries print to standard output when they please; the answer has it alone.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parent_pid = arguments.parent_pid or os.getppid()
    limit_process(memory_bytes=arguments.memory_mb * 1024 * 1024, parent_pid=parent_pid)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    with answer:
        answer.write(_run(arguments.source, arguments.target, convert_bin=arguments.convert_bin) + "\n")
    return 0


def _run(source: Path, target: Path, *, convert_bin: bool) -> str:
    try:
        # Imported here: the limits and the error answer must be in place before a second of imports.
        leave_out(*UNUSED)
        gc.disable()  # of the half million objects that the imports make, none goes away
        from workers.importing.importer import import_model

        gc.freeze()
        gc.enable()

        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise ModelRefused(f"the target folder {target.name} is not empty")
        spec = import_model(source, target, convert_bin=convert_bin)
    except OndolError as exc:
        return json.dumps({"ok": False, "error": exc.as_dict()})
    except MemoryError:
        error = ModelRefused("the model needs more memory than an import may use")
        return json.dumps({"ok": False, "error": error.as_dict()})
    return json.dumps({"ok": True, "spec": json.loads(dump_model_spec(spec)), "warnings": list(spec.warnings)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.importing", description="Check and convert one model folder."
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="model folder: Hugging Face or sentence-transformers"
    )
    parser.add_argument("--target", type=Path, required=True, help="empty or new folder for the canonical files")
    parser.add_argument("--convert-bin", action="store_true", help="convert .bin weights (tensors only) to safetensors")
    parser.add_argument("--memory-mb", type=int, default=65_536, help="limit of the address space, in MiB")
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process, the parent, is gone")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
