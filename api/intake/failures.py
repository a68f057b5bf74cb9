"""From our errors to exceptions that exist wherever Python does: what a producer's `AsyncResult.get()` raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.errors import STATUS
from ondol.contract.errors import ContractError, DeadlineExceeded, NotFound, OndolError

_BY_CODE = {cls.code: cls for cls in STATUS}
_BUILTINS: tuple[tuple[type[OndolError], type[Exception]], ...] = (
    (ContractError, ValueError),
    (NotFound, LookupError),
    (DeadlineExceeded, TimeoutError),
    (OndolError, RuntimeError),
)


def exception_of(error: OndolError) -> Exception:
    """The built-in exception for an error of ours; its message names the code, and the field at fault."""
    return _exception(type(error), error.message, code=error.code, param=error.param)


def exception_of_record(stored: Mapping[str, Any] | None) -> Exception:
    """The built-in exception for the error that a failed job's record states."""
    found = stored or {}
    code = str(found.get("code") or OndolError.code)
    message = str(found.get("message") or "the job failed")
    return _exception(_BY_CODE.get(code, OndolError), message, code=code, param=found.get("param"))


def _exception(kind: type[OndolError], message: str, *, code: str, param: str | None) -> Exception:
    builtin = next(builtin for ours, builtin in _BUILTINS if issubclass(kind, ours))
    where = f", param {param}" if param else ""
    return builtin(f"{message} (code {code}{where})")
