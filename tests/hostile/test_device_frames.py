"""Whatever a device process says, its worker's keeper lives: what cannot be understood ends that process, not ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ondol.contract.errors import DeviceLost, OndolError
from ondol.contract.frames import Header, pack_frame
from tests.hostile.outcomes import outcome
from tests.hostile.strategies import deep_json
from tests.waiting import wait_until
from workers.device_keeper import DeviceKeeper, DeviceProgram

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

READY = {"op": "ready", "device": "cpu:0", "device_kind": "cpu-f32"}
PROGRAM = """
import pathlib, socket, sys
folder, fd = pathlib.Path(sys.argv[1]), int(sys.argv[sys.argv.index("--fd") + 1])
sock = socket.socket(fileno=fd)
first, second = (folder / "ready").read_bytes(), (folder / "answer").read_bytes()
sock.sendall(first)
while data := sock.recv(65536):
    if not (folder / "spent").exists():
        (folder / "spent").touch()
        sock.sendall(second)
    else:
        sock.sendall((folder / "good").read_bytes())
"""
LIMIT_S = 30
DEEP = b'{"id": ' + deep_json() + b"}"


def raw_frame(head: bytes, body: bytes = b"") -> bytes:
    """A frame of these very bytes."""
    return len(head).to_bytes(4, "little") + len(body).to_bytes(8, "little") + head + body


@contextmanager
def kept(folder: Path, answer: bytes) -> Iterator[tuple[DeviceKeeper, list[Header]]]:
    """A keeper of a program that answers the first request of all with `answer`, and later ones as it should."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "ready").write_bytes(pack_frame(READY))
    (folder / "answer").write_bytes(answer)
    ups: list[Header] = []
    program = DeviceProgram((sys.executable, str(folder / "program.py"), str(folder)))
    keeper = DeviceKeeper(program, forward_limit_s=5, on_up=ups.append, on_down=lambda: None)
    keeper.start()
    try:
        assert keeper.wait_up(LIMIT_S)
        yield keeper, ups
    finally:
        keeper.stop()


@pytest.mark.parametrize(
    "answer",
    [
        b"\0" * 12,
        b"\xff" * 64,
        raw_frame(b"not JSON"),
        raw_frame(b"[]"),
        raw_frame(b"\xff\xfe"),
        raw_frame(DEEP),
        pack_frame({"op": "ran", "id": "one"}),
        pack_frame({"op": "ran", "id": [1]}),
        pack_frame({"op": "ran", "id": None}),
        pack_frame({"op": "ran", "id": 1e400}),
        pack_frame({"id": 1}),
        pack_frame({"op": 7, "id": 1}),
        pack_frame({"op": "failed", "id": 1}),
        pack_frame({"op": "failed", "id": 1, "error": "no"}),
        pack_frame({"op": "failed", "id": 1, "error": {"code": 7}}),
    ],
    ids=lambda answer: repr(answer[12:40]),
)
def test_an_answer_that_cannot_be_understood_replaces_the_device_process(answer: bytes, tmp_path: Path) -> None:
    with kept(tmp_path, answer) as (keeper, _):
        first = outcome(lambda: keeper.request({"op": "unload", "key": "a"}).result(LIMIT_S), OndolError)
        assert isinstance(first, tuple | OndolError), "whoever asked is answered"
        number = 2
        (tmp_path / "good").write_bytes(pack_frame({"op": "unloaded", "id": number, "key": "a"}))

        def answered() -> bool:
            nonlocal number
            future = keeper.request({"op": "unload", "key": "a"})
            try:
                return bool(future.result(LIMIT_S)[0]["op"] == "unloaded")
            except DeviceLost:
                number += 1
                (tmp_path / "good").write_bytes(pack_frame({"op": "unloaded", "id": number, "key": "a"}))
                return False

        wait_until(answered, within_s=LIMIT_S, what="the next device process to answer")


def test_an_answer_to_nobody_is_passed_over(tmp_path: Path) -> None:
    stray = pack_frame({"op": "ran", "id": 99}) + pack_frame({"op": "ran"}) + pack_frame({"op": "unloaded", "id": 1})
    with kept(tmp_path, stray) as (keeper, ups):
        header, _ = keeper.request({"op": "unload", "key": "a"}).result(LIMIT_S)
        assert header["op"] == "unloaded" and len(ups) == 1
