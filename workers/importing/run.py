"""The worker's side of an import: starts the child, waits, and turns its answer into a spec or an error.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ondol.contract.errors import ModelRefused, ModelStoreError
from ondol.contract.model_spec import ModelSpec, parse_model_spec
from workers.limited_child import LimitedChild

IMPORT_CHILD = LimitedChild(
    "workers.importing",
    what="the import",
    code="import_child_died",
    advice="if it lacked memory, import the model on a larger host",
    variables={
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    },
)


def run_import(
    source: Path,
    target: Path,
    *,
    convert_bin: bool,
    timeout_s: float,
    memory_mb: int = 65_536,
    must_end: Callable[[], bool] = lambda: False,
) -> ModelSpec | None:
    """Import `source` into the new folder `target` in a child process; blocks. Call from a thread that lives on.

    `must_end` is asked ten times a second; when it says so, the child is ended and None returned (the only None).
    Then, and on any error, `target` is removed. ModelRefused: the folder cannot be imported, and the message says why.
    AttemptTimedOut: the child was ended after `timeout_s`. AttemptError (`import_child_died`): the child ended by
    itself, as from lack of memory. `memory_mb` bounds the child's address space.
    """
    if target.exists() and any(target.iterdir()):
        raise ModelStoreError(f"{target} is not empty")
    arguments = ["--source", str(source), "--target", str(target), *(["--convert-bin"] if convert_bin else [])]
    spec: ModelSpec | None = None
    try:
        answer = IMPORT_CHILD.run(arguments, timeout_s=timeout_s, memory_mb=memory_mb, must_end=must_end)
        if answer is not None and not answer["ok"]:
            error = answer["error"]
            raise ModelRefused(error["message"], param=error["param"], code=error["code"])
        if answer is not None:
            spec = parse_model_spec(json.dumps(answer["spec"]).encode(), ref=source.name)
    finally:
        if spec is None:
            shutil.rmtree(target, ignore_errors=True)
    return spec
