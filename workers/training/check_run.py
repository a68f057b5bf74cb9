"""The trainer node's side of a check: starts the child, waits, and turns its answer into a report or an error.

Imports neither torch nor transformers, and none of the libraries that read the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ondol.contract.errors import InvalidPayload, ModelStoreError
from workers.limited_child import LimitedChild
from workers.training.plan import TrainReport, parse_report

DEFAULT_MEMORY_MB = 16_384

_CHECK = LimitedChild(
    "workers.training.check",
    what="the check of the data",
    code="check_child_died",
    advice="if it lacked memory, use fewer or shorter rows",
)


def run_check(
    plan_path: Path,
    *,
    timeout_s: float,
    memory_mb: int = DEFAULT_MEMORY_MB,
    must_end: Callable[[], bool] = lambda: False,
) -> TrainReport | None:
    """Check the data of the plan at `plan_path` in a child process; blocks. Call from a thread that lives on.

    `must_end` is asked ten times a second; when it says so, the child is ended and None returned (the only None).
    InvalidPayload: the data or options are at fault, and the message says how. ModelStoreError: the base is not
    readable. AttemptTimedOut: the child was ended
    after `timeout_s`. AttemptError (`check_child_died`): it ended by itself, as from lack of memory. `memory_mb`
    bounds the child's address space.
    """
    answer = _CHECK.run(["--plan", str(plan_path)], timeout_s=timeout_s, memory_mb=memory_mb, must_end=must_end)
    if answer is None:
        return None
    if answer["ok"]:
        return parse_report(answer["report"])
    error = answer["error"]
    if error["code"] == ModelStoreError.code:
        raise ModelStoreError(error["message"])
    raise InvalidPayload(error["message"], param=error["param"], code=error["code"])
