"""The worker's one child: starts the device process, speaks with it, replaces it when it dies.

A new device process starts only when the old one's process group is gone. All of this happens on one thread that lives
as long as the worker, because the child's parent-death signal is tied to the thread that started it.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from ondol.contract.errors import DeviceError, DeviceLost, OndolError
from ondol.contract.frames import Buffer, FrameError, Header, receive_frame, send_frame
from workers.child_environment import device_environment
from workers.forward_limits import ForwardLimits
from workers.process_group import end_group, kill_group
from workers.vital_thread import vital_thread

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S = 0.1
_READY_BACKOFF_S = 0.4
_MAX_BACKOFF_S = 10.0
_HEALTHY_S = 5.0
_EXIT_LIMIT_S = 5.0
_START_LIMIT_S = 300.0
_ERROR_FIELDS = frozenset({"code", "message", "param"})
_WATCH_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class DeviceProgram:
    """How the device process is started: its argument vector without the socket, and what its environment gains.

    Of the worker's own environment it gets no more than `device_environment` names.
    """

    argv: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    keep_fds: tuple[int, ...] = ()


@dataclass(slots=True)
class _Pending:
    future: Future[tuple[Header, memoryview]]
    request: Header
    sent_at: float
    is_over_limit: bool = False


class DeviceKeeper:
    """Requests in, futures out. A future fails with DeviceLost when the process dies before it answered.

    `on_up(ready)` and `on_down()` are called on the keeper's thread, `on_down` before the lost futures fail;
    `on_over_limit()` on another, after a process that took too long for a request was killed.
    """

    def __init__(
        self,
        program: DeviceProgram,
        *,
        forward_limit_s: float,
        forward_stall_s: float | None = None,
        on_up: Callable[[Header], None],
        on_down: Callable[[], None],
        on_over_limit: Callable[[], None] = lambda: None,
    ) -> None:
        """A pass may take `forward_limit_s`; where the speed of its model is known less, not under `forward_stall_s`.

        Without `forward_stall_s` every pass is given `forward_limit_s`.
        """
        self._program = program
        least_s = forward_limit_s if forward_stall_s is None else forward_stall_s
        self._limits = ForwardLimits(longest_s=forward_limit_s, least_s=least_s)
        self._on_over_limit = on_over_limit
        self._on_up = on_up
        self._on_down = on_down
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._send_lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = vital_thread("device-keeper", self._loop)
        self._watch = vital_thread("device-watch", self._watch_limits)

    def start(self) -> None:
        """Start the device process and keep one from now on."""
        self._thread.start()
        self._watch.start()

    def wait_up(self, timeout_s: float) -> bool:
        """Whether the device process is up within the time; nobody waits for one after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._sock is not None or self._stopping.is_set(), timeout_s)
            return self._sock is not None

    @property
    def is_up(self) -> bool:
        """Whether a device process answers now."""
        return self._sock is not None

    def request(self, header: Header, bodies: Sequence[Buffer] = ()) -> Future[tuple[Header, memoryview]]:
        """Send a request; the future's result is its reply's header and body. Never raises."""
        future: Future[tuple[Header, memoryview]] = Future()
        # Numbered and sent under one lock: the lowest number pending is what the device was at when it died.
        with self._send_lock:
            number = next(self._ids)
            with self._lock:
                sock = self._sock
                if sock is not None:
                    self._pending[number] = _Pending(future, header, time.monotonic())
            if sock is not None:
                try:
                    send_frame(sock, {**header, "id": number}, bodies)
                except OSError as exc:
                    # The keeper's thread sees the same end of the stream and fails everything that is pending.
                    log.debug("device.send_failed", reason=str(exc))
        if sock is None:
            future.set_exception(DeviceLost("the device process is being replaced"))
        return future

    def stop(self, *, grace_s: float = 5.0) -> None:
        """Close the socket, so that the process exits; kill its group when it does not within the grace."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        self._shut_socket()
        self._thread.join(timeout=grace_s)
        process = self._process
        if self._thread.is_alive() and process is not None:
            kill_group(process.pid)
            self._thread.join(timeout=grace_s)

    def _loop(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started_at = time.monotonic()
            was_ready = self._run_once()
            if self._stopping.is_set():
                return
            if was_ready and time.monotonic() - started_at > _HEALTHY_S:
                backoff_s = _FIRST_BACKOFF_S
            else:  # one that was ready fell over a batch: bisecting must not wait long
                backoff_s = min(backoff_s * 2, _READY_BACKOFF_S if was_ready else _MAX_BACKOFF_S)
            self._stopping.wait(backoff_s)

    def _run_once(self) -> bool:
        """One life of the device process, from start to its group being gone; whether it ever was ready."""
        ours, theirs = socket.socketpair()
        was_ready = False
        try:
            process = self._spawn(theirs)
        except OSError as exc:
            log.error("device.not_started", reason=str(exc))
            ours.close()
            return False
        finally:
            theirs.close()
        self._process = process
        try:
            was_ready = self._serve(ours)
        finally:
            self._end(process, ours)
        return was_ready

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._program.argv, "--fd", str(theirs.fileno())],
            env=device_environment() | self._program.environment,
            pass_fds=(theirs.fileno(), *self._program.keep_fds),
            stdin=subprocess.DEVNULL,
            process_group=0,
        )

    def _serve(self, sock: socket.socket) -> bool:
        try:
            sock.settimeout(_START_LIMIT_S)  # one that hangs before it is ready is replaced like one that died
            first = receive_frame(sock)
            if first is None or first[0].get("op") != "ready":
                return False
            sock.settimeout(None)
            self._on_up(first[0])
            with self._changed:
                self._sock = sock
                self._changed.notify_all()
            log.info("device.up", **{k: v for k, v in first[0].items() if k != "op"})
            while (frame := receive_frame(sock)) is not None:
                self._settle(*frame)
        except (OSError, FrameError) as exc:
            log.warning("device.stream_broken", reason=str(exc)[:200])
        return self.is_up

    def _end(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        with self._lock:
            self._sock = None
            lost, self._pending = self._pending, {}
        sock.close()
        _see_it_end(process, is_wanted=self._stopping.is_set())
        if not self._stopping.is_set():
            log.warning("device.lost", exit_code=process.returncode, num_pending=len(lost))
        self._on_down()
        message = f"the device process ended (exit code {process.returncode})"
        for i, number in enumerate(sorted(lost)):
            lost[number].future.set_exception(DeviceLost(message, was_on_device=i == 0))

    def _settle(self, header: Header, body: memoryview) -> None:
        with self._lock:
            pending = self._pending.pop(_number_of(header), None)
            for other in self._pending.values():  # requests are served in order: the next one's time runs from now
                other.sent_at = time.monotonic()
        if pending is None:
            return
        if header["op"] == "failed":
            pending.future.set_exception(_error_of(header))
        else:
            try:
                self._limits.learn(pending.request, header)
            except (LookupError, TypeError, ValueError) as exc:
                pending.future.set_exception(DeviceLost("the device process gave an answer that lacks its numbers"))
                raise FrameError(f"the answer lacks what belongs to it: {exc!r}") from exc
            pending.future.set_result((header, body))

    def _watch_limits(self) -> None:
        looked_at = time.monotonic()
        while not self._stopping.wait(_WATCH_EVERY_S):
            now = time.monotonic()
            frozen_s = max(0.0, now - looked_at - 2 * _WATCH_EVERY_S)
            looked_at = now
            with self._lock:
                first = next(iter(self._pending.values()), None)
                if first is not None:
                    first.sent_at += frozen_s  # we stood still, and most likely the device process with us
            process = self._process
            if first is None or process is None:
                continue
            limit_s = self._limits.limit_s(first.request)
            if now - first.sent_at > limit_s and not first.is_over_limit:
                first.is_over_limit = True
                log.error("device.over_limit", op=first.request["op"], limit_s=limit_s, cure="the process is replaced")
                kill_group(process.pid)
                self._on_over_limit()

    def _shut_socket(self) -> None:
        with self._lock:
            sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as exc:
                log.debug("device.socket_closed_already", reason=str(exc))
        elif self._process is not None and self._process.poll() is None:
            kill_group(self._process.pid)  # still starting: it holds nothing that could be lost


def _number_of(header: Header) -> int:
    """The number of the request that is answered, 0 for none; FrameError for what is no answer."""
    number, op, error = header.get("id", 0), header.get("op"), header.get("error")
    if type(number) is not int or not isinstance(op, str):
        raise FrameError("an answer bears the number of its request and an operation")
    if op == "failed" and not (isinstance(error, dict) and {"code", "message"} <= {*error} <= _ERROR_FIELDS):
        raise FrameError("the answer that a request failed does not say why")
    return number


def _error_of(header: Header) -> OndolError:
    error = header["error"]
    made = DeviceError(error["message"], param=error.get("param"), code=error["code"])
    made.retryable = bool(header.get("is_retryable"))
    return made


def _see_it_end(process: subprocess.Popen[bytes], *, is_wanted: bool) -> None:
    """Wait until the process and its whole group are gone; SIGKILL what does not go."""
    if is_wanted:
        try:
            process.wait(timeout=_EXIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            log.warning("device.killed", reason="it did not exit when its socket closed")
    end_group(process)
