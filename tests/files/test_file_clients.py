"""SDK and command line: what goes up comes down, verified; nothing is stored twice, nothing half is left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from ondol import AsyncOndol, ConnectionFailed, FileInfo, NoSuchThing, Ondol, RequestRefused, StateConflict
from ondol.cli.main import run
from ondol.client.errors import BadAnswer
from ondol.client.file_transfer import FileUpload
from ondol.contract.errors import InvalidPayload
from tests.client.scripted_server import ScriptedServer, client_of
from tests.files.store_folder import TABLE, fine_tune_on
from tests.http.api_process import Member

pytestmark = pytest.mark.integration

MB = 1024 * 1024
LARGE = bytes(range(256)) * 5000


@pytest.fixture
def client(member: Member) -> Iterator[Ondol]:
    with Ondol(member.api.url, member.secret) as opened:
        yield opened


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "리뷰.csv"
    path.write_bytes(LARGE)
    return path


def file_json(content: bytes) -> dict[str, object]:
    sizes = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"id": "file_1", "filename": "a.csv", "purpose": "fine-tune", "created_at": 1, **sizes}


def test_a_file_goes_up_and_comes_down(client: Ondol, table: Path, tmp_path: Path) -> None:
    info = client.files.put(table, expires_after_s=3600)
    assert (info.filename, info.purpose, info.size_bytes) == ("리뷰.csv", "fine-tune", len(LARGE))
    assert info.expires_at is not None and info.expires_at - info.created_at >= timedelta(seconds=3600)
    named = client.files.put(str(table), "user_data", filename='a "quoted" name')
    assert named.filename == 'a "quoted" name'
    assert client.files.get(info.id) == info
    assert list(client.files.list()) == [named, info]
    assert list(client.files.list(purpose="fine-tune", limit=1)) == [info]
    assert client.files.content(info.id) == LARGE
    assert client.files.download(info.id, tmp_path / "down.csv") == info
    assert (tmp_path / "down.csv").read_bytes() == LARGE
    client.files.delete(info.id)
    with pytest.raises(NoSuchThing):
        client.files.download(info.id, tmp_path / "gone.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["down.csv", "리뷰.csv"]


def test_the_async_client_does_the_same(member: Member, table: Path, tmp_path: Path) -> None:
    async def there_and_back() -> list[FileInfo]:
        async with AsyncOndol(member.api.url, member.secret) as client:
            info = await client.files.put(table)
            assert await client.files.get(info.id) == info
            assert await client.files.content(info.id) == LARGE
            assert await client.files.download(info.id, tmp_path / "down.csv") == info
            found = [file async for file in client.files.list()]
            await client.files.delete(info.id)
            assert [file async for file in client.files.list()] == []
            return found

    assert [info.filename for info in asyncio.run(there_and_back())] == ["리뷰.csv"]
    assert (tmp_path / "down.csv").read_bytes() == LARGE


def test_a_refusal_names_the_field(client: Ondol, member: Member, tmp_path: Path) -> None:
    (tmp_path / "a.exe").write_bytes(b"x")
    with pytest.raises(RequestRefused, match=r"\.csv") as caught:
        client.files.put(tmp_path / "a.exe")
    assert caught.value.param == "file"
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(InvalidPayload, match="cannot read"):
            client.files.put(path)
    (tmp_path / "a.csv").write_bytes(TABLE)
    info = client.files.put(tmp_path / "a.csv")
    member.api.database.write(lambda uow: uow.jobs.add_all([fine_tune_on(member.project_id, train_file=info.id)]))
    with pytest.raises(StateConflict, match="ondol jobs cancel"):
        client.files.delete(info.id)


def test_a_file_over_the_limit_is_a_refusal_and_no_lost_connection(narrow: Member, tmp_path: Path) -> None:
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(120 * MB)
    with Ondol(narrow.api.url, narrow.secret) as client, pytest.raises(RequestRefused) as caught:
        client.files.put(tmp_path / "large.csv")
    assert caught.value.status == 413


def test_an_upload_is_tried_again_only_where_nobody_was_reached(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TABLE)
    refused = httpx.ConnectError("refused")
    server = ScriptedServer([refused, httpx.Response(200, json=file_json(TABLE))])
    assert client_of(server).files.put(tmp_path / "a.csv").id == "file_1"
    assert [TABLE in request.content for request in server.requests] == [True, True]
    for reply in (httpx.ReadError("reset"), httpx.ReadTimeout("late")):
        server = ScriptedServer([reply])
        with pytest.raises(ConnectionFailed, match="ondol files ls"):
            client_of(server).files.put(tmp_path / "a.csv")
    server = ScriptedServer([httpx.Response(503, json={"error": {"message": "busy", "code": "not_ready"}})])
    with pytest.raises(Exception, match="busy"):
        client_of(server).files.put(tmp_path / "a.csv")


def test_another_digest_than_the_servers_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TABLE)
    server = ScriptedServer([httpx.Response(200, json=file_json(LARGE))])
    with pytest.raises(BadAnswer, match="not the same"):
        client_of(server).files.put(tmp_path / "a.csv")
    server = ScriptedServer([httpx.Response(200, json=file_json(TABLE)), httpx.Response(200, content=LARGE)])
    with pytest.raises(BadAnswer, match="not the same"):
        client_of(server).files.download("file_1", tmp_path / "b.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TABLE)
    upload = FileUpload(tmp_path / "a.csv", "fine-tune")
    (tmp_path / "a.csv").write_bytes(TABLE[:-1])
    with pytest.raises(InvalidPayload, match="shorter"):
        list(upload.pieces())


def test_a_download_that_breaks_off_begins_again(tmp_path: Path) -> None:
    with cut_off_server(LARGE) as url, Ondol(url) as client:
        client.files.download("file_1", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == LARGE


@contextmanager
def cut_off_server(content: bytes) -> Iterator[str]:
    """A server that says what the file is, cuts its content off in the middle once, and then gives it whole."""
    about = json.dumps(file_json(content)).encode()
    answers = [(about, about), (content, content[: len(content) // 2]), (content, content)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer_all, args=(listener, answers))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def _answer_all(listener: socket.socket, answers: list[tuple[bytes, bytes]]) -> None:
    for whole, sent in answers:
        connection, _ = listener.accept()
        with connection:
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            head = f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(whole)}\r\n\r\n"
            connection.sendall(head.encode() + sent)


def test_the_command_line_puts_lists_gets_and_removes(
    member: Member,
    table: Path,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONDOL_URL", member.api.url)
    monkeypatch.setenv("ONDOL_API_KEY", member.secret)

    def ondol(*arguments: str) -> bytes:
        assert run(["files", *arguments]) == 0, capsysbinary.readouterr().err
        return capsysbinary.readouterr().out

    file_id = ondol("put", str(table)).decode().strip()
    assert ondol("get", file_id) == LARGE
    assert "리뷰.csv" in ondol("get", file_id, "--output", str(tmp_path / "down.csv")).decode()
    assert (tmp_path / "down.csv").read_bytes() == LARGE
    assert json.loads(ondol("get", file_id, "--json"))["filename"] == "리뷰.csv"
    shown = ondol("ls").decode()
    assert file_id in shown and "1,280,000" in shown
    assert [file["id"] for file in json.loads(ondol("ls", "--json"))["data"]] == [file_id]
    ondol("rm", file_id)
    assert run(["files", "get", file_id, "--output", str(tmp_path / "x")]) == 2
    assert b"`ondol files ls`" in capsysbinary.readouterr().err
    assert run(["files", "put", str(tmp_path / "missing.csv")]) == 2
    assert len(capsysbinary.readouterr().err.splitlines()) == 1
