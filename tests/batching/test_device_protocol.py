"""The loop of a device process: answers in order, bad frames refused one by one, the end when the peer closes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from ondol.contract.errors import DeviceLost
from ondol.contract.frames import Header, receive_frame, send_frame
from tests.device_child import HASH_PROGRAM, REPOSITORY, device_child, run_frame, vectors_of
from tests.device_programs import Faults, HashEngine, hash_vector
from workers.device.engine import Engine, RunRequest, RunResult
from workers.device.serve import serve

MODEL = {"key": "d:float32", "ref": "m:1", "path": "/nowhere", "dtype": "float32"}


@dataclass
class Served:
    sock: socket.socket
    thread: threading.Thread
    raised: list[BaseException] = field(default_factory=list)

    def receive(self) -> tuple[Header, memoryview]:
        frame = receive_frame(self.sock)
        assert frame is not None
        return frame

    def ask(self, header: Header, body: bytes = b"") -> tuple[Header, memoryview]:
        send_frame(self.sock, header, (body,))
        return self.receive()


@contextmanager
def _serving(engine: Engine) -> Iterator[Served]:
    """`serve` on a thread of this process; our end is closed and the thread joined at the end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    raised: list[BaseException] = []

    def run() -> None:
        with theirs:
            try:
                serve(theirs, engine, {"device": "cpu:0"})
            except BaseException as exc:  # noqa: BLE001  # a thread's edge; the test looks at it
                raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Served(ours, thread, raised)
    finally:
        ours.close()
        thread.join(20)
        assert not thread.is_alive()


def _hash_engine() -> HashEngine:
    return HashEngine(Faults(), batch_tokens=1024)


@pytest.mark.unit
def test_answers_come_in_order_with_their_ids() -> None:
    with _serving(_hash_engine()) as served:
        assert served.receive()[0] == {"op": "ready", "device": "cpu:0"}
        send_frame(served.sock, {"op": "load", "id": 1, "model": MODEL, "pinned": True})
        for request_id in range(2, 12):
            header, body = run_frame(request_id, MODEL, [[request_id, 5], [7]])
            send_frame(served.sock, header, (body,))
        send_frame(served.sock, {"op": "probe", "id": 12, "model": MODEL})
        send_frame(served.sock, {"op": "unload", "id": 13, "key": "d:float32"})
        answers = [served.receive() for _ in range(13)]
    assert [header["id"] for header, _ in answers] == list(range(1, 14))
    assert [header["op"] for header, _ in answers] == ["loaded", *["ran"] * 10, "probed", "unloaded"]
    for answer, vectors in answers[1:11]:
        expected = [hash_vector(np.asarray(row, dtype=np.int32), 32) for row in ([answer["id"], 5], [7])]
        np.testing.assert_array_equal(vectors_of(answer, vectors), expected)


@pytest.mark.unit
@pytest.mark.parametrize(
    "change",
    [
        {"op": "dance"},
        {"lengths": []},
        {"lengths": [0, 3]},
        {"lengths": [1, True]},
        {"lengths": [5, 5]},
        {"skip": [1]},
        {"has_type_ids": True},
        {"spec": {"task": "embedding", "pooling": "mean"}},
        {"spec": {"task": "embedding", "layer": 1.5}},
        {"spec": 7},
        {"model": {"key": "a"}},
    ],
)
def test_bad_request_is_refused_and_the_next_one_answered(change: Header) -> None:
    with _serving(_hash_engine()) as served:
        served.receive()
        header, body = run_frame(1, MODEL, [[1], [2, 3]])
        answer, _ = served.ask(header | change, body)
        assert (answer["op"], answer["id"], answer["is_retryable"]) == ("failed", 1, False)
        assert answer["error"]["code"] == "invalid_payload"
        header, body = run_frame(2, MODEL, [[1], [2, 3]])
        assert served.ask(header, body)[0]["op"] == "ran"


class _FailingEngine(HashEngine):
    """Raises `error` in every run."""

    def __init__(self, error: Exception) -> None:
        super().__init__(Faults(), batch_tokens=1024)
        self._error = error

    def run(self, request: RunRequest) -> RunResult:  # noqa: ARG002  # whatever is asked
        raise self._error


@pytest.mark.unit
def test_lost_device_ends_the_loop_without_an_answer() -> None:
    with _serving(_FailingEngine(DeviceLost("CUDA error: an illegal memory access"))) as served:
        served.receive()
        header, body = run_frame(1, MODEL, [[1]])
        send_frame(served.sock, header, (body,))
        assert receive_frame(served.sock) is None
    assert isinstance(served.raised[0], DeviceLost)


@pytest.mark.unit
def test_unforeseen_error_is_answered_before_it_ends_the_loop() -> None:
    with _serving(_FailingEngine(ZeroDivisionError("bug"))) as served:
        served.receive()
        header, body = run_frame(1, MODEL, [[1]])
        answer, _ = served.ask(header, body)
        assert answer["op"] == "failed"
        assert answer["error"]["code"] == "internal_error"
        assert receive_frame(served.sock) is None
    assert isinstance(served.raised[0], ZeroDivisionError)


@pytest.mark.unit
def test_peer_that_closes_with_answers_unread_ends_the_loop() -> None:
    with _serving(_hash_engine()) as served:
        for request_id in range(5):
            header, body = run_frame(request_id, MODEL, [[1]])
            send_frame(served.sock, header, (body,))
    assert not served.raised


@pytest.mark.integration
def test_row_with_the_trigger_kills_the_tests_device_program() -> None:
    with device_child([*HASH_PROGRAM, "--trigger-token", "13"]) as child:
        header, body = run_frame(1, MODEL, [[1, 2], [3]])
        assert child.ask(header, body)[0]["op"] == "ran"
        header, body = run_frame(2, MODEL, [[1, 2], [5, 13]])
        with pytest.raises((EOFError, ConnectionError)):
            child.ask(header, body)
        assert child.process.wait(timeout=20) == -signal.SIGKILL


@pytest.mark.integration
def test_device_program_without_a_model_imports_no_torch() -> None:
    code = "import sys, tests.device_programs; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"

    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
