"""From errors to answers: the one table of statuses, and OpenAI's error body for every refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from ondol.contract import errors as e

STATUS: dict[type[e.OndolError], int] = {
    e.OndolError: 500,
    e.ContractError: 400,
    e.InvalidPayload: 400,
    e.UnknownJobKind: 400,
    e.InputTooLong: 400,
    e.PayloadTooLarge: 413,
    e.ModelCannot: 400,
    e.ModelRefused: 400,
    e.InvalidWebhook: 400,
    e.NotAuthenticated: 401,
    e.NotPermitted: 403,
    e.NotFound: 404,
    e.JobNotFound: 404,
    e.ModelNotFound: 404,
    e.FileNotFound: 404,
    e.PartGone: 410,
    e.JobGone: 410,
    e.FileGone: 410,
    e.NotAcceptable: 406,
    e.Conflict: 409,
    e.TaskRevoked: 409,
    e.FileInUse: 409,
    e.AliasMoved: 409,
    e.VersionInUse: 409,
    e.IdempotencyMismatch: 422,
    e.IdempotencyInFlight: 409,
    e.IllegalTransition: 409,
    e.StaleAttempt: 409,
    e.Overloaded: 429,
    e.NotReady: 503,
    e.DatabaseUnavailable: 503,
    e.BrokerUnavailable: 503,
    e.DeadlineExceeded: 504,
    e.ModelStoreError: 500,
    e.ChecksumMismatch: 500,
    e.StoreUnavailable: 503,
    e.StorageFull: 507,
    e.DeviceError: 500,
    e.OutOfDeviceMemory: 500,
    e.DeviceLost: 503,
    e.AttemptError: 500,
    e.AttemptTimedOut: 504,
    e.LeaseLost: 503,
    e.WorkerLost: 500,
    e.HandedBack: 503,
}
"""Every error of ours by class; a test fails when one is missing."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    406: "invalid_request_error",
    409: "conflict_error",
    410: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_BY_CODE = {cls.code: cls for cls in STATUS}
_DEFAULT_RETRY_AFTER_S = 1.0


def status_of(error: e.OndolError) -> int:
    """The status for an error: its class's, or the nearest parent's."""
    kind = type(error)
    if kind is e.OndolError:  # an error that came by wire without a class of ours: its code decides
        kind = _BY_CODE.get(error.code, kind)
    return next(STATUS[cls] for cls in kind.__mro__ if cls in STATUS)


def error_from_record(stored: Mapping[str, Any], *, param: str | None = None) -> e.OndolError:
    """The error that a job's or an item's record states. An item's own mistake (with `param`) is the request's."""
    code = str(stored.get("code") or "internal_error")
    where = param if param is not None else stored.get("param")
    kind = _BY_CODE.get(code, e.OndolError)
    is_theirs = param is not None and not kind.retryable and STATUS[kind] not in (503, 504)
    error = (e.ContractError if is_theirs else e.OndolError)(str(stored.get("message") or code), param=where, code=code)
    error.retryable = kind.retryable
    return error


def error_object(error: e.OndolError, status: int) -> dict[str, Any]:
    """What stands under `error` in a body."""
    kind = _TYPES.get(status, "server_error")
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code}


def error_response(error: e.OndolError, *, status: int | None = None) -> Response:
    """The answer that refuses with this error, with the headers that tell clients whether to come back."""
    status = status_of(error) if status is None else status
    body = orjson.dumps({"error": error_object(error, status)})
    return Response(body, status, _headers(error, status), media_type="application/json")


def _headers(error: e.OndolError, status: int) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if isinstance(error, e.DatabaseUnavailable) and error.must_not_repeat:
        return {"x-should-retry": "false"}
    if status == 409 and not error.retryable:
        return {"x-should-retry": "false"}
    if status in (409, 429, 503):
        wait_s = getattr(error, "retry_after_s", _DEFAULT_RETRY_AFTER_S)
        headers = {"x-should-retry": "true", "retry-after": str(max(1, math.ceil(wait_s)))}
        if isinstance(error, e.Overloaded):  # measured; whole seconds would be wrong by as much as there is to wait
            headers["retry-after-ms"] = str(math.ceil(1000 * (wait_s + error.spread_s)))
        return headers
    return {}
