"""Calls to models that are not here yet: a line a model, a few threads that bring one model each, and a bound.

While a model is brought here its calls wait in its own line, and hold back no call to another model.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ondol.broker.calls import CallRequest
from ondol.contract.errors import NotReady, OndolError, Overloaded
from ondol.contract.jobs import Inputs
from workers.vital_thread import vital_thread

MAX_CALLS = 512
"""Calls that wait for their models. Those that come beyond them are refused: warm models answer their own meanwhile."""
MAX_CHARACTERS = 16 * 1024 * 1024
"""Of all their texts; a call that is alone may be longer."""
_NUM_THREADS = 4
_RETRY_AFTER_S = 2.0

Call = tuple[str, CallRequest]
"""The api process to answer, and what it asked."""
_Key = tuple[str, str]


class ColdCalls:
    """Thread-safe. `run(*call)` is called on threads of its own, and may block; `refuse(*call, error)` on any."""

    def __init__(
        self, run: Callable[[str, CallRequest], None], refuse: Callable[[str, CallRequest, OndolError], None]
    ) -> None:
        self._run = run
        self._refuse = refuse
        self._lines: dict[_Key, deque[Call]] = {}
        self._unattended: deque[_Key] = deque()
        self._num_calls = 0
        self._num_characters = 0
        self._num_running = 0
        self._is_stopping = False
        self._changed = threading.Condition()
        self._threads = [vital_thread(f"cold-call-{i}", self._loop) for i in range(_NUM_THREADS)]

    def start(self) -> None:
        """Begin to bring models here."""
        for thread in self._threads:
            thread.start()

    def add(self, api_id: str, request: CallRequest) -> None:
        """Let the call wait in its model's line; it is refused when too much waits already, or this worker stops."""
        with self._changed:
            error = self._why_not(request)
            if error is None:
                self._put(api_id, request)
        if error is not None:
            self._refuse(api_id, request, error)

    def stop(self) -> None:
        """Refuse what waits, so that clients try elsewhere; what runs goes on. Returns at once."""
        with self._changed:
            self._is_stopping = True
            waiting = [call for line in self._lines.values() for call in line]
            self._lines.clear()
            self._unattended.clear()
            self._num_calls = self._num_characters = 0
            self._changed.notify_all()
        for api_id, request in waiting:
            self._refuse(api_id, request, stopping())

    def wait(self, limit_s: float) -> bool:
        """Whether no call is run any more within the time; after `stop`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_running == 0, limit_s)

    def _why_not(self, request: CallRequest) -> OndolError | None:
        if self._is_stopping:
            return stopping()
        too_long = self._num_calls > 0 and self._num_characters + _size_of(request.inputs) > MAX_CHARACTERS
        if self._num_calls >= MAX_CALLS or too_long:
            return Overloaded(
                f"{request.model_ref} is not loaded here yet, and {self._num_calls} calls wait for models already; "
                "try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        return None

    def _put(self, api_id: str, request: CallRequest) -> None:
        key = (request.version_id, str(request.options.get("dtype", "auto")))
        if key not in self._lines:
            self._lines[key] = deque()
            self._unattended.append(key)
        self._lines[key].append((api_id, request))
        self._num_calls += 1
        self._num_characters += _size_of(request.inputs)
        self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopping or len(self._unattended) > 0)
                if self._is_stopping:
                    return
                key = self._unattended.popleft()
            while (call := self._next(key)) is not None:
                try:
                    self._run(*call)
                finally:
                    del call  # its texts go before the next one comes
                    with self._changed:
                        self._num_running -= 1
                        self._changed.notify_all()

    def _next(self, key: _Key) -> Call | None:
        """The next call of a line that this thread attends to; None when it has come to its end, and is no line."""
        with self._changed:
            line = self._lines.get(key)
            if not line:
                self._lines.pop(key, None)
                return None
            call = line.popleft()
            self._num_calls -= 1
            self._num_characters -= _size_of(call[1].inputs)
            self._num_running += 1
            return call


def stopping() -> NotReady:
    """What is said to whoever asks a worker that stops."""
    return NotReady("the worker is stopping; try again")


def _size_of(inputs: Inputs) -> int:
    """Characters of texts, and ids of inputs that are token ids. Nobody has checked yet what stands in a pair."""
    return sum(sum(len(str(text)) for text in one.values()) if isinstance(one, dict) else len(one) for one in inputs)
