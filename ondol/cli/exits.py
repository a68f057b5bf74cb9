"""Exit codes, and every error as one line that says what to do next."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable

from ondol.client.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    NoSuchThing,
    OndolAPIError,
    PermissionRefused,
    RequestRefused,
    ServerBusy,
    ServerFailed,
)
from ondol.contract.errors import ContractError, NotFound, NotReady, OndolError

DONE = 0
JOB_FAILED = 1
WRONG_USE = 2
UNREACHABLE = 3
INTERRUPTED = 130

_WRONG_USE = (ContractError, NotFound, RequestRefused, NoSuchThing, AuthenticationFailed, PermissionRefused)
_UNREACHABLE = (ConnectionFailed, NotReady)
_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def exit_code_of(error: OndolError) -> int:
    """2 where another command is needed, 3 where the server is not there, else 1."""
    if isinstance(error, _WRONG_USE):
        return WRONG_USE
    if isinstance(error, _UNREACHABLE) or (isinstance(error, ServerFailed) and error.status in (502, 503, 504)):
        return UNREACHABLE
    return JOB_FAILED


def error_line(error: OndolError) -> str:
    """What went wrong, where, and what to do next, in one line."""
    parts = [" ".join(error.message.split())]
    if error.param and error.param not in error.message:
        parts.append(f"(field {error.param})")
    advice = _advice(error)
    if advice:
        parts.append(f"- {advice}")
    if isinstance(error, OndolAPIError) and error.status >= 500 and error.request_id:
        parts.append(f"[request {error.request_id}]")
    if isinstance(error, (ConnectionFailed, OndolAPIError)) and error.job_id:
        told = f"; job {error.job_id} goes on: `ondol jobs result {error.job_id}` has its result when it has ended"
        parts[-1] += told
    return " ".join(parts)


def fail(message: str, code: int) -> int:
    """Print the line to stderr; returns `code`."""
    sys.stderr.write(f"ondol: {message}\n")
    return code


def run_guarded(command: Callable[[], int]) -> int:
    """The exit code of `command`, with errors of ours and Ctrl-C turned into a line and a code.

    A reader of our output that has seen enough, as in `| head`, is no error.
    """
    try:
        code = command()
        if sys.stdout is not None:  # None where it was closed beforehand, as services may be started
            sys.stdout.flush()
        return code
    except OndolError as error:
        return fail(error_line(error), exit_code_of(error))
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _leave_output()
        return DONE
    except OSError as error:
        if error.errno not in _IS_FULL:
            raise
        _leave_output()
        return fail(f"cannot write: {error.strerror}", JOB_FAILED)
    except SystemExit as ended:  # what Typer makes of it
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        _leave_output()
        return DONE


def _leave_output() -> None:
    """What is still in the buffer goes nowhere, or the interpreter would tell of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _advice(error: OndolError) -> str:
    if "`ondol " in error.message:  # the server said it already
        return ""
    if isinstance(error, AuthenticationFailed):
        return "set ONDOL_API_KEY to a key made by `ondol keys create`"
    if isinstance(error, ServerBusy) and error.retry_after_s is not None:
        return f"try again in {math.ceil(error.retry_after_s)} s"
    if isinstance(error, NoSuchThing) and error.code == "model_not_found":
        return "`ondol models ls` shows the models there are"
    if isinstance(error, NoSuchThing) and error.code == "job_not_found":
        return "`ondol jobs ls` shows the jobs there are"
    if isinstance(error, NoSuchThing) and error.code == "file_not_found":
        return "`ondol files ls` shows the files there are"
    return ""
