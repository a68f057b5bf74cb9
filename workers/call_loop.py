"""The call loop: takes calls as fast as the batcher wants rows, and answers each when its last row is settled."""

from __future__ import annotations

import threading
import time

import structlog

from ondol.broker.call_worker import CallTaker, ReplySender
from ondol.broker.calls import CallReply, CallRequest, error_header, reply_header
from ondol.contract.errors import DeadlineExceeded, OndolError
from ondol.contract.frames import pack_frame
from ondol.metrics.jobs import StageMetrics
from workers.batcher import Batcher
from workers.cold_calls import ColdCalls, stopping
from workers.in_flight import InFlight
from workers.inference_task import InferenceTask, TaskRequest
from workers.model_library import ModelLibrary
from workers.rows import Work
from workers.tasks import prepare
from workers.vital_thread import vital_thread

log = structlog.get_logger(__name__)

_TAKE_AT_MOST = 128
_ENDING_S = 2.0
"""For calls that still wait for a model when the device process is gone: they end at once, with its error."""


class CallLoop:
    """One thread takes; calls to models that are not here yet wait beside it (`workers.cold_calls`)."""

    def __init__(
        self,
        *,
        taker: CallTaker,
        replies: ReplySender,
        library: ModelLibrary,
        batcher: Batcher,
        in_flight: InFlight,
        max_open_tokens: int,
        stages: StageMetrics,
    ) -> None:
        self._stages = stages
        self._taker = taker
        self._replies = replies
        self._library = library
        self._batcher = batcher
        self._in_flight = in_flight
        self._max_open_tokens = max_open_tokens
        self._open_tokens = 0
        self._open_calls = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._is_over = threading.Event()
        self._cold = ColdCalls(self._run_cold, self._refuse)
        self._thread = vital_thread("call-loop", self._loop)

    def start(self) -> None:
        """Begin to take calls."""
        self._cold.start()
        self._thread.start()

    def begin_to_stop(self) -> None:
        """Take no more calls; returns at once."""
        self._stopping.set()

    def stop(self, *, limit_s: float) -> None:
        """Take no more, wait for those that run, and refuse what still waits, so that clients try again elsewhere."""
        self._stopping.set()
        self._cold.stop()
        ends_at = time.monotonic() + limit_s
        self._thread.join(timeout=limit_s)
        self._cold.wait(max(0.0, ends_at - time.monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: self._open_calls == 0, max(0.0, ends_at - time.monotonic()))
        self._is_over.set()
        for api_id, request in self._taker.take_waiting():
            self._refuse(api_id, request, stopping())
        if not self._thread.is_alive():  # one that still waits for Redis ends with the process
            self._taker.close()

    def close(self) -> None:
        """Send the answers that wait. Called after `stop`, and when the device process is gone."""
        self._cold.wait(_ENDING_S)
        self._replies.close()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            if not self._has_room():
                continue
            self._batcher.add(self._take())  # no name here keeps the last work, and its files, while nothing comes

    def _take(self) -> list[Work]:
        """Works of the calls that have come for models that are here; the others wait in their models' lines."""
        works = []
        for api_id, request in self._taker.take(_TAKE_AT_MOST):
            if self._is_over.is_set():  # Redis answered late: nobody runs them any more
                self._refuse(api_id, request, stopping())
            elif self._library.is_prepared(request.version_id, str(request.options.get("dtype", "auto"))):
                work = self._prepare(api_id, request)
                works += [work] if work is not None else []
            else:
                self._cold.add(api_id, request)
        return works

    def _has_room(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._open_tokens < self._max_open_tokens, 0.5)

    def _run_cold(self, api_id: str, request: CallRequest) -> None:
        work = self._prepare(api_id, request)
        if work is not None:
            self._batcher.add([work])

    def _prepare(self, api_id: str, request: CallRequest) -> Work | None:
        """The call's work, registered and ready to be queued; None when it was answered already."""
        taken_at = time.monotonic()
        try:
            if time.time() > request.deadline_at:
                raise DeadlineExceeded("the deadline passed before the call was taken")
            task = prepare(self._library, _task_request(request))
            if not task.work.rows:
                self._reply(api_id, task, taken_at)
                return None
        except OndolError as exc:
            self._refuse(api_id, request, exc)
            return None
        except Exception as exc:  # the call's edge: whoever waits is answered
            log.exception("call.crashed", call_id=request.id)
            self._refuse(api_id, request, OndolError(f"internal error: {type(exc).__name__}"))
            return None
        task.work.needs_lease = False
        task.work.on_done = lambda _: self._finish(api_id, task, taken_at)
        self._in_flight.add([task.work])
        with self._changed:
            self._open_calls += 1
            self._open_tokens += sum(task.tokenized.tokens)
        return task.work

    def _finish(self, api_id: str, task: InferenceTask, taken_at: float) -> None:
        """The call has ended: answered, or struck out, when nobody listens any more."""
        try:
            if not task.work.is_struck:
                self._reply(api_id, task, taken_at)
        except OndolError as exc:
            self._replies.send(api_id, pack_frame(error_header(task.work.id, exc)))
        except Exception as exc:  # the call's edge: whoever waits is answered, and the dispatcher goes on
            log.exception("call.crashed", call_id=task.work.id)
            error = OndolError(f"internal error: {type(exc).__name__}")
            self._replies.send(api_id, pack_frame(error_header(task.work.id, error)))
        finally:
            self._in_flight.remove([task.work])
            with self._changed:
                self._open_calls -= 1
                self._open_tokens -= sum(task.tokenized.tokens)
                self._changed.notify_all()

    def _reply(self, api_id: str, task: InferenceTask, taken_at: float) -> None:
        found = task.answer()
        started_at = task.work.started_at or time.monotonic()
        timings = {
            "queue_wait_s": max(0.0, started_at - taken_at - task.tokenize_s),
            "tokenize_s": task.tokenize_s,
            "forward_s": task.work.forward_s,
            "load_s": task.work.load_s,
        }
        for stage, seconds in timings.items():
            self._stages.took(stage.removesuffix("_s"), "call", (seconds,))
        reply = CallReply(
            vectors=found.vectors,
            tokens=found.tokens,
            truncated=found.truncated,
            errors={i: error.as_dict() for i, error in found.errors.items()},
            model=task.ref,
            dtype=task.model.dtype,
            engine=task.work.engine,
            timings=timings,
            about=found.about,
            outputs=found.outputs,
        )
        header, body = reply_header(task.work.id, reply)
        self._replies.send(api_id, pack_frame(header, (body,)))

    def _refuse(self, api_id: str, request: CallRequest, error: OndolError) -> None:
        self._replies.send(api_id, pack_frame(error_header(request.id, error)))


def _task_request(request: CallRequest) -> TaskRequest:
    return TaskRequest(
        id=request.id,
        kind=request.kind,
        version_id=request.version_id,
        options=request.options,
        inputs=request.inputs,
        priority=request.priority,
        deadline_at=request.deadline_at,
    )
