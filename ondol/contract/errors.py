"""The error tree: named by cause, data as attributes, nothing about HTTP (see `api/errors.py` for that table).

`retryable` says whether trying the very same thing again can help. `code` is what the outside sees.
"""

from __future__ import annotations


class OndolError(Exception):
    """Root of every error that Ondol raises on purpose.

    `param` is the path of the field at fault (`input[3]`, `options.pooling`) where there is one.
    """

    code: str = "internal_error"
    retryable: bool = False

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def as_dict(self) -> dict[str, str | None]:
        """The error as it is stored and sent: code, message and the field at fault."""
        return {"code": self.code, "message": self.message, "param": self.param}


class ContractError(OndolError):
    """The request itself is wrong; the same request never succeeds."""

    code = "invalid_request"


class InvalidPayload(ContractError):
    """A field has a wrong type, value or name."""

    code = "invalid_payload"


class UnknownJobKind(ContractError):
    """No such job kind."""

    code = "unknown_job_kind"


class InputTooLong(ContractError):
    """A text has more tokens than the model takes, and cutting was not asked for."""

    code = "context_length_exceeded"


class PayloadTooLarge(ContractError):
    """The body, or one text in it, is over the configured size."""

    code = "payload_too_large"


class ModelCannot(ContractError):
    """The model lacks what the task needs (a head, a pooler)."""

    code = "model_has_no_head"


class ModelRefused(ContractError):
    """A model folder cannot be imported; the message says which file and what to do."""

    code = "model_refused"


class InvalidWebhook(ContractError):
    """A received webhook is not signed with the secret, or is too old; nothing in it is to be believed."""

    code = "invalid_webhook"


class NotAuthenticated(OndolError):
    """No valid API key came with the request."""

    code = "invalid_api_key"


class NotPermitted(OndolError):
    """The key is valid, but does not allow this."""

    code = "not_permitted"


class NotFound(OndolError):
    """The thing does not exist, or belongs to another project."""

    code = "not_found"


class JobNotFound(NotFound):
    """No such job in this project."""

    code = "job_not_found"


class ModelNotFound(NotFound):
    """No such model, version or alias in this project."""

    code = "model_not_found"


class FileNotFound(NotFound):
    """No such uploaded file in this project, or it has expired."""

    code = "file_not_found"


class PartGone(NotFound):
    """Inputs, result or events of a job were deleted when their time was over; the job itself is still there."""

    code = "part_gone"


class JobGone(JobNotFound):
    """The job was deleted when its time was over."""

    code = "job_gone"


class FileGone(FileNotFound):
    """The file was deleted when its time was over."""

    code = "file_gone"


class Conflict(OndolError):
    """The request does not fit the present state of the thing."""

    code = "conflict"


class TaskRevoked(OndolError):
    """The task was revoked before its job was recorded; there is none."""

    code = "task_revoked"


class FileInUse(Conflict):
    """An unfinished job names the file."""

    code = "file_in_use"


class AliasMoved(Conflict):
    """The alias does not point to what the caller expected; `points_to` is its version's number (None: no alias)."""

    code = "alias_moved"

    def __init__(self, message: str, *, points_to: int | None) -> None:
        super().__init__(message, param="expected")
        self.points_to = points_to


class VersionInUse(Conflict):
    """The version cannot be deleted while `aliases` point to it."""

    code = "version_in_use"

    def __init__(self, message: str, *, aliases: tuple[str, ...]) -> None:
        super().__init__(message)
        self.aliases = aliases


class IdempotencyMismatch(Conflict):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_mismatch"


class IdempotencyInFlight(Conflict):
    """The first request with this Idempotency-Key is still being answered."""

    code = "idempotency_in_flight"
    retryable = True


class IllegalTransition(Conflict):
    """The job's state does not allow this transition."""

    code = "illegal_transition"


class StaleAttempt(Conflict):
    """A newer attempt owns the job; nothing was written."""

    code = "stale_attempt"


class NotAcceptable(OndolError):
    """The result cannot be given in the format asked for."""

    code = "not_acceptable"


class Overloaded(OndolError):
    """A queue or in-flight limit is reached; `retry_after_s` says when there will be room.

    `spread_s`: how much later to come back, so that those who were refused together do not come together.
    """

    code = "overloaded"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float, spread_s: float = 0.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s
        self.spread_s = spread_s


class NotReady(OndolError):
    """A part that the request needs is not there yet (no worker, no database)."""

    code = "not_ready"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DatabaseUnavailable(NotReady):
    """The database does not answer. `may_be_done`: a write that was given up may be committed all the same."""

    code = "database_unavailable"
    may_be_done = False
    must_not_repeat = False
    """Whoever asked without a key must look before asking again: done twice it would be two things."""


class BrokerUnavailable(NotReady):
    """Redis does not answer."""

    code = "broker_unavailable"


class DeadlineExceeded(OndolError):
    """The deadline passed before the work was done."""

    code = "deadline_exceeded"


class ModelStoreError(OndolError):
    """The model store could not do what was asked."""

    code = "model_store_error"


class ChecksumMismatch(ModelStoreError):
    """A file in the store does not have the digest that its manifest states. Permanent."""

    code = "checksum_mismatch"

    def __init__(self, *, ref: str, file: str, expected: str, actual: str) -> None:
        super().__init__(f"{file} of {ref} is damaged: expected sha256 {expected}, found {actual}")
        self.ref, self.file, self.expected, self.actual = ref, file, expected, actual


class StoreUnavailable(ModelStoreError):
    """The store's filesystem does not answer or refuses writes."""

    code = "store_unavailable"
    retryable = True


class StorageFull(StoreUnavailable):
    """The store, or the local disk, has no room left; somebody must make some."""

    code = "storage_full"


class DeviceError(OndolError):
    """The device could not run a batch."""

    code = "device_error"


class OutOfDeviceMemory(DeviceError):
    """One row alone does not fit into the device's memory."""

    code = "out_of_device_memory"


class DeviceLost(DeviceError):
    """The device process ended before it answered; `was_on_device`: it was at this very request."""

    code = "device_lost"
    retryable = True

    def __init__(self, message: str, *, was_on_device: bool = False) -> None:
        super().__init__(message)
        self.was_on_device = was_on_device


class AttemptError(OndolError):
    """An attempt at a job ended without a result."""

    code = "attempt_error"


class AttemptTimedOut(AttemptError):
    """The attempt ran longer than it may."""

    code = "attempt_timed_out"


class LeaseLost(AttemptError):
    """The worker's session lapsed; what it claimed belongs to others now."""

    code = "lease_lost"
    retryable = True


class WorkerLost(AttemptError):
    """The job was alone on the device in three attempts whose process died."""

    code = "worker_lost"


class HandedBack(AttemptError):
    """The worker is stopping; the work goes back to the queue. Not a loss."""

    code = "handed_back"
    retryable = True
