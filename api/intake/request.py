"""A producer's task as it is received: without its texts wherever Celery would show them, and its ETA left to SQL."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.app.task import Context
from celery.worker.request import Request

from ondol.contract.errors import InvalidPayload

HIDDEN = "(not shown)"
MAX_TASK_ID_CHARS = 128
_FACTS = "ondol_facts"
_HOOKS = {"callbacks": "link", "errbacks": "link_error", "chain": "chain", "chord": "chord"}


class BlankRequest(Request):  # type: ignore[misc]  # celery is untyped
    """What the node knows of a received task: events, logs, `inspect` and Flower see its id and name, never texts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = self._type  # a producer's `shadow` may hold anything
        self._argsrepr = self._kwargsrepr = HIDDEN
        facts = {"ignores_result": bool(self._ignore_result), "num_bytes": len(self._body or b"")}
        # The intake's own return is no result: the answer comes when the job has ended.
        blank = {"argsrepr": HIDDEN, "kwargsrepr": HIDDEN, "shadow": None, "ignore_result": True, _FACTS: facts}
        self._request_dict.update(blank)
        self._eta = None  # recorded at once as the time before which the job does not run

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002 - the signature is the library's
        """What `inspect active` and `inspect reserved` answer."""
        shown: dict[str, Any] = super().info(safe=True)
        return shown


class ProducerTask(Task):  # type: ignore[misc]  # celery is untyped
    """How the intake's tasks are received, and which errors of theirs are answers and no faults."""

    Request = BlankRequest
    throws = (ValueError, LookupError, TimeoutError, RuntimeError)
    typing = False


def ignores_result(request: Context) -> bool:
    """Whether the producer wants no answer."""
    return bool(getattr(request, _FACTS)["ignores_result"])


def num_bytes(request: Context) -> int:
    """Size of the message's body."""
    return int(getattr(request, _FACTS)["num_bytes"])


def check_request(request: Context) -> None:
    """InvalidPayload if the message asks for what the intake cannot do for it."""
    hooks = [shown for name, shown in _HOOKS.items() if getattr(request, name)]
    if hooks:
        raise InvalidPayload(
            f"{' and '.join(hooks)} would run when the job is recorded, not when it has ended; wait for the result,"
            " or let the job's webhook tell you, and send what follows then",
            param=hooks[0],
        )
    task_id = request.id
    if not isinstance(task_id, str) or not task_id.isprintable() or not 0 < len(task_id) <= MAX_TASK_ID_CHARS:
        raise InvalidPayload(f"a task id has 1 to {MAX_TASK_ID_CHARS} printable characters", param="task_id")
    if request.args:
        raise InvalidPayload("give the job's fields by name, as in kwargs={'model': …, 'input': …}", param="args")
