"""What may stand between client and server: redirects, answers that nobody can read, waiting requests beside others."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from ondol import AsyncOndol, ConnectionFailed, Ondol, RequestRefused
from ondol.cli.main import run
from ondol.contract.errors import InvalidPayload
from tests.client.loopback import Asked, Loopback, Told, listening, told_json
from tests.client.scripted_server import job_json

pytestmark = pytest.mark.integration

LIMIT_S = 60
NUM_WAITS = 300
FILE = {"filename": "a.csv", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "created_at": 1790000000}
VECTOR = base64.b64encode(np.ones(2, dtype="<f4").tobytes()).decode()
EMBEDDED = {"object": "list", "data": [{"index": 0, "embedding": VECTOR}], "model": "m:1"}


@asynccontextmanager
async def answering(answer: Callable[[str], Awaitable[object]]) -> AsyncIterator[str]:
    """The address of a server on this thread's event loop: 200 and the JSON that `answer` gives for a path."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(sum(int(line.split(b":")[1]) for line in lengths))
                body = json.dumps(await answer(head.split(b" ")[1].decode())).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, asyncio.CancelledError):  # the client has closed it, or the test is over
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def moved(_: Asked) -> Told:
    page = b"<html>Permanent Redirect</html>"
    return Told(308, page, {"location": "https://ondol.test/", "content-type": "text/html"})


@pytest.fixture
def proxy() -> Iterator[Loopback]:
    """What answers every request with a redirect, as a proxy does that wants another scheme."""
    with listening(moved) as server:
        yield server


@pytest.mark.parametrize(
    "ask",
    [
        lambda client, _: client.jobs.delete("job_1"),
        lambda client, _: client.files.delete("file_1"),
        lambda client, folder: client.jobs.download("job_1", folder / "result.json"),
        lambda client, _: list(client.jobs.events("job_1")),
        lambda client, _: client.embed("a", model="m"),
    ],
    ids=["delete", "delete-file", "download", "events", "embed"],
)
def test_a_redirect_is_an_error_that_says_so(
    proxy: Loopback, tmp_path: Path, ask: Callable[[Ondol, Path], object]
) -> None:
    with Ondol(proxy.url) as client, pytest.raises(RequestRefused, match="redirect; set ONDOL_URL") as caught:
        ask(client, tmp_path)
    assert caught.value.status == 308
    assert len(proxy.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_async_client_follows_no_redirect_either(proxy: Loopback, tmp_path: Path) -> None:
    async def ask() -> None:
        async with AsyncOndol(proxy.url) as client:
            with pytest.raises(RequestRefused, match="redirect"):
                await client.jobs.delete("job_1")
            with pytest.raises(RequestRefused, match="redirect"):
                await client.jobs.download("job_1", tmp_path / "result.json")
            with pytest.raises(RequestRefused, match="redirect"):
                [event async for event in client.jobs.events("job_1")]

    asyncio.run(ask())
    assert len(proxy.asked) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_cannot_be_decoded_is_a_connection_that_failed(tmp_path: Path) -> None:
    torn = Told(200, b"no gzip at all", {"content-encoding": "gzip", "content-type": "application/json"})
    with listening(lambda _: torn) as server, Ondol(server.url, max_retries=0) as client:
        with pytest.raises(ConnectionFailed, match="broke off"):
            client.models.list()
        with pytest.raises(ConnectionFailed, match="broke off"):
            client.jobs.result("job_1")
        with pytest.raises(ConnectionFailed):
            list(client.jobs.events("job_1"))


@pytest.mark.parametrize("key", ["sk-geheim\n", "  sk-geheim ", "sk-geheim\r\n"])
def test_white_space_around_a_key_is_not_sent(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDOL_API_KEY", key)
    with listening(lambda _: told_json(200, {"object": "list", "data": []})) as server, Ondol(server.url) as client:
        client.models.list()
        assert server.asked[0].headers["authorization"] == "Bearer sk-geheim"


@pytest.mark.parametrize("key", ["sk-ge\nheim", "“sk-geheim”", "sk-geheim\x00", "열쇠"])
def test_a_key_that_is_none_is_refused_and_never_shown(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], proxy: Loopback
) -> None:
    with pytest.raises(InvalidPayload, match="copy it again") as caught:
        Ondol(proxy.url, key)
    assert key not in str(caught.value)
    if "\x00" not in key:  # no environment can hold it
        monkeypatch.setenv("ONDOL_API_KEY", key)
        assert run(["--url", proxy.url, "jobs", "ls"]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "heim" not in error
    assert proxy.asked == []


def test_calls_go_beside_any_number_of_waiting_requests() -> None:
    async def wait_and_embed() -> None:
        go_on, all_wait = asyncio.Event(), asyncio.Event()
        num_waiting = 0

        async def answer(path: str) -> object:
            nonlocal num_waiting
            if not path.startswith("/v1/jobs"):
                return EMBEDDED
            num_waiting += 1
            if num_waiting == NUM_WAITS:
                all_wait.set()
            await go_on.wait()
            return job_json("job_1", "succeeded")

        async with answering(answer) as url, AsyncOndol(url, timeout=LIMIT_S) as client:
            waits = [asyncio.create_task(client.jobs.wait("job_1")) for _ in range(NUM_WAITS)]
            await asyncio.wait_for(all_wait.wait(), LIMIT_S)
            for _ in range(10):
                assert (await client.embed("a", model="m")).shape == (2,)
            assert not any(wait.done() for wait in waits)
            go_on.set()
            await asyncio.gather(*waits)

    asyncio.run(wait_and_embed())
