"""Whatever headers, cursors, addresses and bodies come, the api refuses in its own shape and never with a 5xx."""

from __future__ import annotations

import http.client
import json
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_from_bytes

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from tests.hostile.stand import MODEL, Stand
from tests.hostile.strategies import deep_json, dump, json_values, odd_texts, one_thing_wrong
from tests.hypothesis_runs import bounded

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

NOBODY = "job_" + "0" * 26
JOB = {"kind": "embedding", "model": MODEL, "input": "a text", "options": {"normalize": True}, "metadata": {"a": "b"}}
CALL = {"model": MODEL, "input": "a text", "encoding_format": "float"}
INFER = {"inputs": "a text", "parameters": {"normalize": True}}
HEADERS = (
    "accept",
    "authorization",
    "content-type",
    "idempotency-key",
    "last-event-id",
    "if-none-match",
    "range",
    "x-request-id",
    "x-stainless-timeout",
)
LISTS = (
    "/v1/jobs",
    "/v1/batches",
    "/v1/files",
    "/v1/fine_tuning/jobs",
    f"/v1/jobs/{NOBODY}/events",
    "/v1/models/tiny/aliases",
)
PARAMETERS = ("after", "limit", "wait", "kind", "status", "model", "created_after", "purpose", "order", "metadata[a]")

header_values = st.one_of(
    st.binary(max_size=60).map(lambda data: bytes(byte for byte in data if byte not in b"\0\r\n")),
    st.sampled_from(
        [b"", b"Bearer", b"Bearer ", b"Bearer " + b"x" * 600, b"Basic !!!", b"*/*;q=2", b"a/b;q=x", b",,,"]
    ),
    st.sampled_from([b"\xff" * 20, b"x" * 7_000, b"1e9", b"-1", b"bytes=9-1,x", b"application/json; charset=utf-16"]),
)
query_values = st.one_of(
    odd_texts.map(lambda text: quote(text.encode("utf-8", "surrogatepass"))),
    st.binary(max_size=20).map(quote_from_bytes),
    st.sampled_from(["nan", "inf", "-1", "1e400", "9" * 400, "%00", "%ff", NOBODY, NOBODY.upper(), "file_" + "0" * 26]),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(
    stand: Stand, method: str, target: str, *, body: bytes = b"", headers: dict[str, bytes] | None = None
) -> Answer:
    """One request, bytes as they are given."""
    connection = http.client.HTTPConnection("127.0.0.1", stand.cluster.port, timeout=60)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        given_headers = {"authorization": f"Bearer {stand.secret}".encode()} | (headers or {})
        for name, value in given_headers.items():
            connection.putheader(name, value)
        if method in ("POST", "PUT"):
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        is_stream = answer.headers.get_content_type() == "text/event-stream"
        return Answer(answer.status, answer.headers, b"" if is_stream else answer.read())
    finally:
        connection.close()


def check(answer: Answer, target: str = "/v1") -> None:
    """AssertionError unless the answer is no fault of the server's, and a refusal has the shape of one."""
    assert answer.status < 500, (answer.status, answer.body[:500])
    if answer.status == 400 and not answer.headers["x-request-id"]:
        assert answer.body == b"Invalid HTTP request received."  # it never became a request
        return
    assert answer.headers["x-request-id"]
    if answer.status < 400:
        return
    assert answer.headers.get_content_type() == "application/json", answer.headers.as_string()
    told = json.loads(answer.body)
    if target.startswith("/models/") and "error_type" in told:
        assert isinstance(told["error"], str) and isinstance(told["error_type"], str)
    else:
        error = told["error"]
        assert error["message"] and error["code"] and error["type"] and "param" in error


@pytest.fixture(scope="package", params=["stand", "keyed_stand"])
def each_stand(request: pytest.FixtureRequest) -> Stand:
    """The open one over SQLite, and the one over PostgreSQL that asks for keys."""
    found: Stand = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers_are_refused_or_ignored(each_stand: Stand, name: str) -> None:
    @bounded(12, num_long=500)
    @given(value=header_values)
    def run(value: bytes) -> None:
        headers = {"content-type": b"application/json"} | {name: value}
        check(ask(each_stand, "POST", "/v1/jobs", body=dump(JOB), headers=headers))
        check(ask(each_stand, "GET", f"/v1/jobs/{NOBODY}/events", headers=headers))

    run()


@bounded(60, num_long=5_000)
@given(path=st.sampled_from(LISTS), name=st.sampled_from(PARAMETERS), value=query_values)
@example(path="/v1/fine_tuning/jobs", name="metadata[a]", value="%00")
@example(path="/v1/fine_tuning/jobs", name="metadata[%00]", value="a")
@example(path="/v1/files", name="after", value="file_%00")
def test_odd_parameters_are_refused_or_ignored(
    stand: Stand, keyed_stand: Stand, path: str, name: str, value: str
) -> None:
    for each in (stand, keyed_stand):
        check(ask(each, "GET", f"{path}?{name}={value}"))


@bounded(60, num_long=5_000)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"]),
    head=st.sampled_from(
        [
            "/v1/jobs",
            "/v1/models",
            "/v1/models/tiny/files",
            "/v1/models/tiny/aliases",
            "/v1/files",
            "/models",
            "/v1",
            "",
        ]
    ),
    tail=st.lists(query_values, min_size=1, max_size=4),
)
@example(method="GET", head="/v1/models/tiny:1/files", tail=["..", "..", "..", "etc", "passwd"])
@example(method="GET", head="/v1/models/tiny:1/files", tail=["%2e%2e%2f%2e%2e%2fondol.db"])
@example(method="POST", head=f"/v1/jobs/{NOBODY}/notices", tail=["%00", "redeliver"])
@example(method="DELETE", head="/v1/models/tiny/aliases", tail=["a%00"])
@example(method="DELETE", head="/v1/models/tiny/aliases", tail=["a?reason=%00"])
def test_odd_addresses_are_not_found(stand: Stand, keyed_stand: Stand, method: str, head: str, tail: list[str]) -> None:
    target = "/".join([head, *tail])
    for each in (stand, keyed_stand):
        answer = ask(each, method, target)
        if method != "HEAD":
            check(answer, target)


@bounded(80, num_long=5_000)
@given(
    request=st.one_of(
        one_thing_wrong(JOB).map(lambda body: ("/v1/jobs", body)),
        st.lists(one_thing_wrong(JOB) | json_values, max_size=4).map(lambda jobs: ("/v1/jobs/batch", {"jobs": jobs})),
        one_thing_wrong(CALL).map(lambda body: ("/v1/embeddings", body)),
        one_thing_wrong(INFER).map(lambda body: (f"/models/{MODEL}", body)),
        one_thing_wrong({"model": MODEL, "training_file": "file_" + "0" * 26}).map(
            lambda body: ("/v1/fine_tuning/jobs", body)
        ),
        one_thing_wrong({"input_file_id": "file_" + "0" * 26, "endpoint": "/v1/embeddings"}).map(
            lambda body: ("/v1/batches", body)
        ),
        json_values.map(lambda body: ("/v1/jobs", body)),
    )
)
@example(request=("/v1/jobs", JOB | {"metadata": {"a": "\x00"}}))
@example(request=("/v1/jobs", JOB | {"input": "\x00"}))
@example(request=("/v1/jobs", JOB | {"webhook": "http://127.0.0.1/\x00"}))
@example(request=("/v1/jobs", JOB | {"input_file": "\x00", "input": None}))
@example(request=("/v1/fine_tuning/jobs", {"model": "tiny\x00", "training_file": "\x00"}))
@example(request=("/v1/fine_tuning/jobs", {"model": MODEL, "training_file": "file_" + "0" * 26, "seed": 10**400}))
def test_odd_bodies_are_refused(stand: Stand, keyed_stand: Stand, request: tuple[str, Any]) -> None:
    target, body = request
    for each in (stand, keyed_stand):
        check(ask(each, "POST", target, body=dump(body), headers={"content-type": b"application/json"}), target)


@pytest.mark.parametrize(
    "target", ["/v1/jobs", "/v1/embeddings", "/v1/fine_tuning/jobs", "/v1/batches", "/models/tiny"]
)
def test_bodies_that_are_no_json_are_refused(each_stand: Stand, target: str) -> None:
    bodies = [
        b"",
        b"\xff",
        b"{",
        b"nul",
        deep_json(),
        deep_json('{"a":', "}").replace(b"}", b"1}", 1),
        b"[" * 1_000_000,
    ]
    for body in bodies:
        answer = ask(each_stand, "POST", target, body=body, headers={"content-type": b"application/json"})
        assert answer.status == 400, answer
        check(answer, target)


def test_odd_reasons_and_aliases_are_refused_or_kept(each_stand: Stand) -> None:
    for reason in ("\x00", "a\x00b", "\ud800", "x" * 10_000, "온돌"):
        for alias in ("blue", quote("bl\x00ue"), "BLUE", "%ff"):
            body = dump({"version": 1, "reason": reason})
            headers = {"content-type": b"application/json"}
            check(ask(each_stand, "PUT", f"/v1/models/{MODEL}/aliases/{alias}", body=body, headers=headers))
            asked = quote(reason.encode("utf-8", "surrogatepass"))
            check(ask(each_stand, "DELETE", f"/v1/models/{MODEL}/aliases/{alias}?reason={asked}"))
    assert ask(each_stand, "GET", f"/v1/models/{MODEL}/aliases").status == 200


def test_an_odd_notice_is_not_found(each_stand: Stand) -> None:
    job_id = each_stand.embed_job("tell nobody")["id"]
    for notice_id in ("%00", "x" * 5_000, "%ff", "..%2F..", "msg_" + "0" * 26):
        answer = ask(each_stand, "POST", f"/v1/jobs/{job_id}/notices/{notice_id}/redeliver")
        assert answer.status == 404, answer
        check(answer)


def test_an_idempotency_key_answers_one_request_alone(each_stand: Stand) -> None:
    key = uuid.uuid4().hex.encode()
    headers = {"content-type": b"application/json", "idempotency-key": key}
    first = ask(each_stand, "POST", "/v1/jobs", body=dump(JOB), headers=headers)
    assert first.status == 202
    assert ask(each_stand, "POST", "/v1/jobs", body=dump(JOB), headers=headers).body == first.body
    for target, body in (("/v1/jobs", JOB | {"input": "b"}), ("/v1/jobs/batch", {"jobs": [JOB]})):
        answer = ask(each_stand, "POST", target, body=dump(body), headers=headers)
        assert answer.status == 422
        check(answer)


def test_odd_uploads_are_refused_or_stored_as_they_are(each_stand: Stand) -> None:
    disposition = b'form-data; name="file"; filename='
    for filename in (b'"a.csv"', b'"\x00.csv"', b'"../../a.csv"', b'"' + b"x" * 5_000 + b'.csv"', b'"\xff.csv"', b'""'):
        for purpose in (b"fine-tune", b"", b"\x00", b"\xff"):
            body = (
                b"--b\r\ncontent-disposition: " + disposition + filename + b"\r\n\r\ntext,label\na,b\n\r\n"
                b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + purpose + b"\r\n--b--\r\n"
            )
            answer = ask(
                each_stand, "POST", "/v1/files", body=body, headers={"content-type": b"multipart/form-data; boundary=b"}
            )
            check(answer)
    for form in (b"", b"--b", b"--b--", b"--b\r\n\r\n", b"--b\r\n" + b"a: b\r\n" * 5_000 + b"\r\n", b"\xff" * 70_000):
        for boundary in (b"b", b"", b"x" * 300, b"\xff"):
            header = {"content-type": b"multipart/form-data; boundary=" + boundary}
            answer = ask(each_stand, "POST", "/v1/files", body=form, headers=header)
            assert 400 <= answer.status < 500, answer
            check(answer)
    assert ask(each_stand, "GET", "/v1/files").status == 200
