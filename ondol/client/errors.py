"""What the client raises: the server's refusals by status, no server at all, and jobs or inputs that failed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ondol.contract.errors import OndolError

if TYPE_CHECKING:
    from ondol.client.records import JobFields

_INPUT_PARAM = re.compile(r"inputs?\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one input of a job or call has no output."""

    code: str
    message: str
    param: str | None = None


class ConnectionFailed(OndolError):
    """No answer came from the server at `url`; trying again can help. `was_sent`: the request may have reached it.

    `job_id` is that of a job which was accepted and could not be cancelled: it goes on, and will have a result.
    """

    code = "connection_failed"
    retryable = True
    job_id: str | None = None

    def __init__(self, message: str, *, url: str, was_sent: bool = True) -> None:
        super().__init__(message)
        self.url = url
        self.was_sent = was_sent


class AnswerTimedOut(ConnectionFailed):
    """The server was reached, but did not answer in time."""

    code = "answer_timed_out"


class OndolAPIError(OndolError):
    """The server refused: `status` (HTTP), `code`, `param` (the field at fault) and `request_id` say what and where.

    `after_lost_answer`: an earlier try of the same request may have reached the server, and may have worked. `job_id`
    is that of a job which was accepted and could not be cancelled: it goes on, and will have a result.
    """

    job_id: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        after_lost_answer: bool = False,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.after_lost_answer = after_lost_answer

    @property
    def input_index(self) -> int | None:
        """The index of the input at fault, when the error names one (`input[3]`)."""
        match = _INPUT_PARAM.match(self.param or "")
        return int(match[1]) if match else None


class RequestRefused(OndolAPIError):
    """A field of the request is wrong; the same request never succeeds."""


class AuthenticationFailed(OndolAPIError):
    """No valid API key was sent; set ONDOL_API_KEY."""


class PermissionRefused(OndolAPIError):
    """The API key does not allow this."""


class NoSuchThing(OndolAPIError):
    """The job, model or route does not exist, or belongs to another project."""


class StateConflict(OndolAPIError):
    """The request does not fit the present state of the thing."""


class ServerBusy(OndolAPIError):
    """A queue or quota is full; `retry_after_s` says when to come back."""

    retryable = True


class ServerFailed(OndolAPIError):
    """The server could not answer (5xx); trying again later can help."""

    retryable = True


class BadAnswer(OndolError):
    """The answer is not what this client understands; is the address really an Ondol server?"""

    code = "bad_answer"


class JobFailed(OndolError):
    """The job ended as failed or cancelled, so it has no result; `job` is its last known record."""

    def __init__(self, job: JobFields) -> None:
        error = job.error
        what = f"{error.code}: {error.message}" if error else "no error was recorded"
        super().__init__(f"job {job.id} is {job.status}: {what}", code=error.code if error else job.status)
        self.job = job


class WaitTimedOut(OndolError):
    """The job had not ended when the waiting time was over; it goes on running."""

    code = "wait_timed_out"
    retryable = True


class ItemErrors(OndolError):
    """Some inputs failed; `errors` maps their indexes to reasons, `partial` holds the result of the others.

    For `embed`, `partial` is the float32 array [N, H] with NaN in the rows that failed; for `classify`, `tag` and
    `create_many` the list of results or jobs with None in the places that failed.
    """

    code = "item_errors"

    def __init__(self, errors: Mapping[int, ItemError], *, partial: Any) -> None:
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {len(partial)} inputs failed, the first is input[{first}]: "
            f"{errors[first].code}: {errors[first].message}",
            param=f"input[{first}]",
        )
        self.errors = dict(errors)
        self.partial = partial


_BY_STATUS: dict[int, type[OndolAPIError]] = {
    401: AuthenticationFailed,
    403: PermissionRefused,
    404: NoSuchThing,
    409: StateConflict,
    410: NoSuchThing,
    429: ServerBusy,
}


def error_from_answer(
    status: int,
    content: bytes,
    *,
    request_id: str | None,
    retry_after_s: float | None,
    after_lost_answer: bool = False,
) -> OndolAPIError:
    """The error that an answer with a status of 300 or more states, in OpenAI's shape, Hugging Face's, or none."""
    kind = _BY_STATUS.get(status) or (ServerFailed if status >= 500 else RequestRefused)
    body = _error_body(content)
    message = body.get("message") or f"the server answered {status}: {content[:200].decode('utf-8', 'replace')}"
    if 300 <= status < 400:
        message = f"the server answers {status}, a redirect; set ONDOL_URL to the address that it leads to"
    param = body.get("param")
    return kind(
        str(message),
        status=status,
        code=str(body.get("code") or f"http_{status}"),
        param=None if param is None else str(param),
        request_id=request_id,
        retry_after_s=retry_after_s,
        after_lost_answer=after_lost_answer,
    )


def _error_body(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    if not isinstance(body, dict):
        return {}
    error = body.get("error")
    if isinstance(error, str):  # Hugging Face's shape
        return {"message": error, "code": body.get("error_type"), "param": body.get("param")}
    return error if isinstance(error, dict) else {}
