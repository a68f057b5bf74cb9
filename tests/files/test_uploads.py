"""`/v1/files`: what is uploaded comes back; what is refused leaves nothing; no upload needs memory for its size."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import sqlalchemy as sa

from api.upload import FORM_BYTES
from ondol.sql.tables import files
from tests.files.store_folder import (
    TABLE,
    StoreFolder,
    begin_upload,
    fine_tune_on,
    form,
    form_type,
    part,
    upload,
    uploaded_id,
)
from tests.http.api_process import ApiProcess, Member
from tests.http.test_bad_input import assert_refused
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MB = 1024 * 1024
LARGE_MB = 200
RSS_ROOM_MB = 32
"""What an upload may cost: some pieces, and what the allocator keeps of them."""
UNKNOWN = "file_" + "0" * 26


def num_rows(member: Member) -> int:
    query = sa.select(sa.func.count()).select_from(files).where(files.c.project_id == member.project_id)
    return member.api.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def test_what_is_uploaded_comes_back(member: Member) -> None:
    content = bytes(range(256)) * 3000
    answer = upload(member, content, "여름 'a'.parquet", **{"expires_after[seconds]": "3600"})
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert (file["object"], file["bytes"], file["status"]) == ("file", len(content), "processed")
    assert (file["filename"], file["purpose"]) == ("여름 'a'.parquet", "fine-tune")
    assert file["expires_at"] - file["created_at"] in (3600, 3601)
    assert member.http.get(f"/v1/files/{file['id']}").json() == file
    got = member.http.get(f"/v1/files/{file['id']}/content")
    assert got.content == content
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''%EC%97%AC%EB%A6%84%20%27a%27.parquet"
    assert member.http.get("/v1/files").json()["data"] == [file]
    assert member.http.delete(f"/v1/files/{file['id']}").json() == {"id": file["id"], "object": "file", "deleted": True}
    for answer in (member.http.get(f"/v1/files/{file['id']}"), member.http.delete(f"/v1/files/{file['id']}")):
        assert_refused(answer, 404, "file_id")


def test_a_deleted_file_leaves_nothing(narrow: Member, narrow_store: StoreFolder) -> None:
    file_id = uploaded_id(narrow)
    assert narrow_store.new_names() == {file_id}
    narrow.http.delete(f"/v1/files/{file_id}")
    assert narrow_store.new_names() == set() and num_rows(narrow) == 0


def test_a_form_carries_little_beside_its_file(narrow: Member, narrow_store: StoreFolder) -> None:
    whole = form(part("purpose", b"fine-tune"), part("file", TABLE, filename="a.csv"))
    answer = narrow.http.post("/v1/files", content=whole + b"\r\n" * FORM_BYTES, headers=form_type())
    assert_refused(answer, 413, None)
    assert narrow_store.new_names() == set() and num_rows(narrow) == 0


def test_openai_unmodified_stores_lists_and_deletes_files(member: Member, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "a", "label": "b"}\n')
    with openai.OpenAI(base_url=f"{member.api.url}/v1", api_key=member.secret, max_retries=0) as client:
        with path.open("rb") as opened:
            expiry: openai.types.file_create_params.ExpiresAfter = {"anchor": "created_at", "seconds": 7200}
            made = client.files.create(file=opened, purpose="fine-tune", expires_after=expiry)
        assert (made.filename, made.bytes, made.expires_at) == ("train.jsonl", 28, made.created_at + 7200)
        others = [client.files.create(file=("x.bin", b"1"), purpose="user_data").id for _ in range(4)]
        assert client.files.retrieve(made.id) == made
        assert client.files.content(made.id).read() == path.read_bytes()
        assert [file.id for file in client.files.list(limit=2)] == [*reversed(others), made.id]
        assert [file.id for file in client.files.list(purpose="fine-tune", order="asc")] == [made.id]
        assert client.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(made.id)


def test_nobody_sees_another_projects_file(member: Member) -> None:
    file_id, other = uploaded_id(member), member.api.member(with_model=False)
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/files/{UNKNOWN}", "/v1/files/..x"):
        assert_refused(other.http.get(path), 404, "file_id")
    assert_refused(other.http.delete(f"/v1/files/{file_id}"), 404, "file_id")
    assert other.http.get("/v1/files").json()["data"] == []
    assert_refused(other.http.get("/v1/files", headers={"authorization": ""}), 401, None)
    other.close()


@pytest.mark.parametrize(
    ("query", "param"),
    [("purpose=poetry", "purpose"), ("after=1", "file_id"), ("limit=0", "limit"), ("order=up", "order")],
)
def test_a_wrong_query_is_named(narrow: Member, query: str, param: str) -> None:
    answer = narrow.http.get(f"/v1/files?{query}")
    assert_refused(answer, 404 if param == "file_id" else 400, param)


def test_an_expired_file_is_not_found(member: Member) -> None:
    file_id = uploaded_id(member)
    expired = sa.update(files).where(files.c.id == file_id).values(expires_at=1.0)
    member.api.database.write(lambda uow: uow.conn.execute(expired))
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
        assert_refused(member.http.get(path), 404, "file_id")
    assert member.http.get("/v1/files").json()["data"] == []


def test_a_file_in_use_is_not_deleted(member: Member) -> None:
    check_that_use_protects(member)


def test_files_live_on_postgresql_too(postgresql_url: str, tmp_path: Path, redis_server: RedisServer) -> None:
    api = ApiProcess(tmp_path, database_url=postgresql_url, redis_url=redis_server.url)
    api.start()
    member = api.member(with_model=False)
    check_that_use_protects(member)
    assert member.http.get("/v1/files").json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False
    }  # fmt: skip
    member.close()
    api.close()


def check_that_use_protects(member: Member) -> None:
    file_id = uploaded_id(member)
    job = fine_tune_on(member.project_id, train_file=file_id)
    member.api.database.write(lambda uow: uow.jobs.add_all([job]))
    answer = member.http.delete(f"/v1/files/{file_id}")
    assert_refused(answer, 409, "file_id")
    assert answer.json()["error"]["code"] == "file_in_use" and job.id in answer.json()["error"]["message"]
    assert member.http.get(f"/v1/files/{file_id}/content").content == TABLE
    member.api.database.write(lambda uow: uow.jobs.cancel(job.id, member.project_id))
    assert member.http.delete(f"/v1/files/{file_id}").status_code == 200


WRONG_UPLOADS = {
    "no file": (form(part("purpose", b"fine-tune")), "file"),
    "purpose last and wrong": (form(part("file", bytes(500_000), filename="a.csv"), part("purpose", b"x")), "purpose"),
    "two files": (form(*[part("file", bytes(200_000), filename="a.csv")] * 2), "file"),
    "path": (form(part("file", b"x", filename="/etc/passwd"), part("purpose", b"user_data")), "file"),
    "empty file": (form(part("file", b"", filename="a.csv"), part("purpose", b"fine-tune")), "file"),
    "cut off": (form(part("file", bytes(900_000), filename="a.csv"))[:-9], None),
}


@pytest.mark.parametrize("name", WRONG_UPLOADS)
def test_a_wrong_upload_is_named_and_leaves_nothing(narrow: Member, narrow_store: StoreFolder, name: str) -> None:
    body, param = WRONG_UPLOADS[name]
    assert_refused(narrow.http.post("/v1/files", content=body, headers=form_type()), 400, param)
    assert narrow_store.new_names() == set() and num_rows(narrow) == 0
    assert narrow.http.get("/v1/files").status_code == 200  # the connection, or a new one, goes on


def test_json_is_no_upload(narrow: Member) -> None:
    assert_refused(narrow.http.post("/v1/files", json={"purpose": "fine-tune"}), 400, "Content-Type")


def test_the_limit_itself_is_taken(narrow: Member) -> None:
    assert len(narrow.http.get(f"/v1/files/{uploaded_id(narrow, bytes(MB))}/content").content) == MB


@pytest.mark.parametrize("num_mb", [1.001, 5, 120])
def test_a_file_over_the_limit_is_refused_while_it_streams(
    narrow: Member, narrow_store: StoreFolder, num_mb: float
) -> None:
    def body() -> Iterator[bytes]:  # without a Content-Length, and longer than the server reads on after its refusal
        yield part("purpose", b"fine-tune") + part("file", b"", filename="a.csv")[:-2]
        left = int(num_mb * MB)
        while left > 0:
            yield bytes(min(left, MB))
            left -= MB
        yield b"\r\n" + form()

    answer = narrow.http.post("/v1/files", content=body(), headers=form_type())
    assert_refused(answer, 413, "file")
    assert narrow_store.new_names() == set() and num_rows(narrow) == 0


def test_a_stated_length_over_the_limit_is_refused_before_the_body(narrow: Member) -> None:
    connection = begin_upload(narrow, 10_000 * MB)
    answer = connection.getresponse()
    assert answer.status == 413
    assert b'"param":"file"' in answer.read()
    connection.close()


@pytest.mark.parametrize("num_mb", [3, 120])
def test_a_client_that_sends_all_before_it_reads_still_gets_the_refusal(narrow: Member, num_mb: int) -> None:
    assert_refused(upload(narrow, bytes(num_mb * MB)), 413, "file")


def test_a_client_that_hangs_up_leaves_nothing(member: Member, store: StoreFolder) -> None:
    connection = begin_upload(member, 20 * MB)
    connection.send(part("purpose", b"fine-tune") + part("file", bytes(5 * MB), filename="a.csv"))
    wait_until(store.new_names, within_s=10, what="a part of the file to be stored")
    connection.close()
    wait_until(lambda: not store.new_names(), within_s=10, what="the part of the file to be removed")
    assert num_rows(member) == 0


def test_a_store_that_takes_no_more_bytes_refuses_and_keeps_nothing(member: Member, store: StoreFolder) -> None:
    soft, hard = resource.prlimit(member.api.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(member.api.pid, resource.RLIMIT_FSIZE, (10 * MB, hard))
    try:
        answer = upload(member, bytes(30 * MB))
    finally:
        resource.prlimit(member.api.pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(answer, 503, None)
    assert answer.json()["error"]["code"] == "store_unavailable"
    assert store.new_names() == set() and num_rows(member) == 0
    uploaded_id(member)


def test_a_damaged_file_does_not_come_whole(member: Member, store: StoreFolder) -> None:
    content = bytes(2 * MB)
    file_id = uploaded_id(member, content)
    path = store.path / file_id
    path.chmod(0o644)
    path.write_bytes(b"\1" + content[1:])
    with pytest.raises(httpx.RemoteProtocolError):
        member.http.get(f"/v1/files/{file_id}/content")
    path.unlink()
    assert_refused(member.http.get(f"/v1/files/{file_id}/content"), 404, "file_id")


def test_a_large_upload_needs_no_memory_of_its_size(member: Member) -> None:
    uploaded_id(member, bytes(5 * MB))
    process = psutil.Process(member.api.pid)
    before = most = process.memory_info().rss
    head, tail = part("purpose", b"fine-tune") + part("file", b"", filename="a.csv")[:-2], b"\r\n" + form()
    connection = begin_upload(member, len(head) + LARGE_MB * MB + len(tail))
    connection.send(head)
    piece = bytes(16 * 1024)
    for i in range(LARGE_MB * MB // len(piece)):
        connection.send(piece)
        if i % 500 == 0:
            most = max(most, process.memory_info().rss)
    connection.send(tail)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
    [file] = member.http.get("/v1/files", params={"limit": 1}).json()["data"]
    assert file["bytes"] == LARGE_MB * MB
    with member.http.stream("GET", f"/v1/files/{file['id']}/content") as content:
        digest = hashlib.sha256()
        for got in content.iter_bytes():
            digest.update(got)
    assert digest.hexdigest() == file["sha256"]
    most = max(most, process.memory_info().rss)
    assert most - before < RSS_ROOM_MB * MB
    member.http.delete(f"/v1/files/{file['id']}")
