"""Jobs that classify and tag: accepted by their own options, results with one item an input, refusals by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models_store.result_blobs import ResultBlobs
from ondol.sql.records import Completion
from tests.http.api_process import MODEL, MOODS, NAMES, Member, job_body
from tests.http.peer_worker import PeerWorker, entities_of, scores_of
from tests.http.test_bad_input import assert_refused

pytestmark = pytest.mark.integration

PAIR = {"text": "is it warm", "text_pair": "very"}
ERROR = {"code": "worker_lost", "message": "lost", "param": None}


@pytest.fixture
def labeller(member: Member) -> Member:
    """Somebody with the models `moods` and `names` too."""
    member.api.publish(member.project_id, "moods", MOODS)
    member.api.publish(member.project_id, "names", NAMES)
    return member


def moods(**fields: Any) -> dict[str, Any]:
    return job_body(**{"kind": "text-classification", "model": "moods", **fields})


def names(**fields: Any) -> dict[str, Any]:
    return job_body(**{"kind": "token-classification", "model": "names", **fields})


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("no head", moods(model=MODEL), "model", "model_has_no_head"),
    ("another head", moods(model="names"), "model", "model_has_no_head"),
    ("no head to tag", names(model=MODEL), "model", "model_has_no_head"),
    ("no label", moods(options={"top_k": 0}), "options.top_k", "invalid_payload"),
    ("half a label", moods(options={"top_k": 1.5}), "options.top_k", "invalid_payload"),
    ("unknown function", moods(options={"function_to_apply": "relu"}), "options.function_to_apply", "invalid_payload"),
    ("threshold over one", moods(options={"threshold": 1.5}), "options.threshold", "invalid_payload"),
    ("option of another kind", moods(options={"pooling": "mean"}), "options.pooling", "invalid_payload"),
    ("too long", moods(options={"max_length": 17}), "options.max_length", "invalid_payload"),
    ("token ids", moods(input=[[1, 2]]), "input[0]", "invalid_payload"),
    ("half a pair", moods(input=[{"text": "a"}]), "input[0].text_pair", "invalid_payload"),
    ("empty half", moods(input=["a", {"text": "a", "text_pair": ""}]), "input[1].text_pair", "invalid_payload"),
    ("more than a pair", moods(input=[PAIR | {"third": "c"}]), "input[0].third", "invalid_payload"),
    ("pair to tag", names(input=[PAIR]), "input[0]", "invalid_payload"),
    ("lone pair to tag", names(input=PAIR), "input", "invalid_payload"),
    ("tags are not cut", names(options={"truncate": "right"}), "options.truncate", "invalid_payload"),
    (
        "unknown strategy",
        names(options={"aggregation_strategy": "most"}),
        "options.aggregation_strategy",
        "invalid_payload",
    ),
    ("stride as long as a window", names(options={"stride": 14}), "options.stride", "invalid_payload"),
    ("label that is none", names(options={"ignore_labels": ["O", 1]}), "options.ignore_labels[1]", "invalid_payload"),
]


@pytest.mark.parametrize(("body", "param", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_job_is_refused_by_its_field(labeller: Member, body: Any, param: str, code: str) -> None:
    answer = labeller.http.post("/v1/jobs", json=body)
    assert_refused(answer, 400, param)
    assert answer.json()["error"]["code"] == code
    assert labeller.count_rows() == 0


def test_a_model_without_the_head_is_told_what_it_can_do(labeller: Member) -> None:
    for body in (moods(model=MODEL), names(model="moods")):
        message = labeller.http.post("/v1/jobs", json=body).json()["error"]["message"]
        assert "can do" in message and "embedding" in message


def test_a_pair_is_too_long_for_a_model_of_few_tokens(labeller: Member) -> None:
    labeller.api.publish(labeller.project_id, "narrow", replace(MOODS, max_length=5))
    assert_refused(labeller.http.post("/v1/jobs", json=moods(model="narrow", input=PAIR)), 400, "input")
    assert labeller.http.post("/v1/jobs", json=moods(model="narrow")).status_code == 202


def result(member: Member, job_id: str, accept: str) -> Any:
    return member.http.get(f"/v1/jobs/{job_id}/result", headers={"accept": accept})


def done(member: Member, worker: PeerWorker, body: dict[str, Any], **more: Any) -> str:
    job_id: str = member.submit(**body)["id"]
    [job] = worker.run_one_message(**more)
    assert job.id == job_id
    return job_id


def labels_of(item: Any) -> list[tuple[str, float]]:
    """The labels of `MOODS` with the worker's scores, best first."""
    ranked = sorted(zip(MOODS.labels, scores_of(item).tolist(), strict=True), key=lambda pair: -pair[1])
    return [(label, float(np.float32(score))) for label, score in ranked]


def test_texts_and_pairs_get_their_labels_best_first(labeller: Member, worker: PeerWorker) -> None:
    job_id = done(labeller, worker, moods(input=["a b", PAIR, "c"]), errors={"2": ERROR})
    body = result(labeller, job_id, "*/*").json()
    assert {name: body[name] for name in ("object", "model", "dtype", "engine", "usage")} == {
        "object": "list",
        "model": "moods:1",
        "dtype": "float32",
        "engine": "torch",
        "usage": {"tokens": 14},
    }
    for index, item in enumerate(["a b", PAIR]):
        shown = body["data"][index]
        assert list(shown) == ["index", "output", "tokens", "truncated"] and shown["index"] == index
        found = [(label["label"], float(np.float32(label["score"]))) for label in shown["output"]]
        assert found == labels_of(item)  # the scores survive their decimal form as the same float32
        assert all(set(label) == {"label", "score"} for label in shown["output"])
    assert body["data"][2]["error"] == ERROR and "output" not in body["data"][2]


def test_one_pair_alone_is_one_input(labeller: Member, worker: PeerWorker) -> None:
    job = labeller.submit(**moods(input=PAIR))
    assert job["progress"]["total"] == 1
    worker.run_one_message()
    [item] = result(labeller, job["id"], "application/json").json()["data"]
    assert item["output"][0]["label"] == labels_of(PAIR)[0][0]


def test_top_k_and_threshold_shape_the_labels(labeller: Member, worker: PeerWorker) -> None:
    job_id = done(labeller, worker, moods(input=["x"], options={"top_k": 2, "threshold": 0.3}))
    [line] = result(labeller, job_id, "application/x-ndjson").text.splitlines()
    assert [(label["label"], label["predicted"]) for label in json.loads(line)["output"]] == [
        (label, score >= 0.3) for label, score in labels_of("x")[:2]
    ]


def test_equal_scores_are_in_the_order_of_the_labels(labeller: Member, worker: PeerWorker) -> None:
    job_id = labeller.submit(**moods(input=["x"]))["id"]
    [job] = worker.claim_next()
    data = np.array([[0.25, 0.5, 0.25]], dtype="<f4").tobytes()
    summary = {"kind": "text-classification", "shape": [1, 3], "labels": ["b", "c", "a"], "top_k": None}
    record(labeller, job.id, job.attempt, summary | {"tokens": [3]}, data)
    [item] = result(labeller, job_id, "application/json").json()["data"]
    assert [label["label"] for label in item["output"]] == ["c", "b", "a"]


def test_entities_stand_with_their_input(labeller: Member, worker: PeerWorker) -> None:
    texts = ["Ada met Grace", "nobody", "Ada 온돌 Bell"]
    job_id = done(labeller, worker, names(input=texts), errors={"1": ERROR})
    items = [json.loads(line) for line in result(labeller, job_id, "application/x-ndjson").text.splitlines()]
    assert [item.get("output") for item in items] == [entities_of(texts[0]), None, entities_of(texts[2])]
    assert items[1]["error"] == ERROR
    assert result(labeller, job_id, "application/json").json()["data"] == items


def test_npy_holds_neither_labels_nor_entities(labeller: Member, worker: PeerWorker) -> None:
    for body in (moods(), names()):
        answer = result(labeller, done(labeller, worker, body), "application/x-npy")
        assert_refused(answer, 406, "Accept")
        assert "application/x-ndjson" in answer.json()["error"]["message"]


def test_large_results_are_streamed_whole_from_their_blobs(labeller: Member, worker: PeerWorker) -> None:
    scores = np.random.default_rng(5).random((5000, 7), dtype=np.float32)
    about = {"kind": "text-classification", "shape": [5000, 7], "labels": list("abcdefg"), "top_k": 1}
    job_id = stored_as_blob(labeller, worker, moods(input=["a"] * 5000), about, scores.astype("<f4").tobytes())
    items = result(labeller, job_id, "application/json").json()["data"]
    assert [item["index"] for item in items] == list(range(5000))
    assert [item["output"][0]["label"] for item in items] == ["abcdefg"[i] for i in scores.argmax(axis=1)]
    entity = {"entity_group": "NAME", "score": 0.5, "word": "Ada", "start": 0, "end": 3}
    data = json.dumps([[entity] * (i % 3) for i in range(5000)]).encode()
    job_id = stored_as_blob(labeller, worker, names(input=["a"] * 5000), {"kind": "token-classification"}, data)
    items = [json.loads(line) for line in result(labeller, job_id, "application/x-ndjson").text.splitlines()]
    assert [len(item["output"]) for item in items] == [i % 3 for i in range(5000)]


@pytest.mark.parametrize(
    ("body", "about", "data"),
    [
        (moods(), {"shape": [1, 3], "labels": ["a", "b"], "top_k": None}, b"\0" * 12),
        (moods(), {"shape": [1, 3], "labels": ["a", "b", "c"], "top_k": None}, b"\0" * 8),
        (moods(), {"shape": [1, 3]}, b"\0" * 12),
        (names(), {"shape": None}, b"[[],[]]"),
        (names(), {"shape": None}, b"[["),
    ],
    ids=["labels", "size", "no labels", "inputs", "json"],
)
def test_a_damaged_result_is_not_passed_on(
    labeller: Member, worker: PeerWorker, body: dict[str, Any], about: dict[str, Any], data: bytes
) -> None:
    job_id = labeller.submit(**body)["id"]
    [job] = worker.claim_next()
    record(labeller, job.id, job.attempt, {"kind": body["kind"], "tokens": [3], **about}, data)
    answer = result(labeller, job_id, "application/json")
    assert_refused(answer, 500, None)


def stored_as_blob(member: Member, worker: PeerWorker, body: dict[str, Any], about: dict[str, Any], data: bytes) -> str:
    """A job whose result lies in the store."""
    job_id: str = member.submit(**body)["id"]
    [job] = worker.claim_next()
    path = ResultBlobs(member.api.store_url).write(job.id, job.attempt, data)
    record(member, job.id, job.attempt, about | {"tokens": [3] * 5000}, data, path)
    return job_id


def record(
    member: Member, job_id: str, attempt: int, about: dict[str, Any], data: bytes, blob_path: str | None = None
) -> None:
    """Complete a job with this result."""
    common = {"truncated": [], "errors": {}, "model": "m:1", "dtype": "float32", "engine": "torch", "num_tokens": 3}
    where: dict[str, Any] = {"data": data} if blob_path is None else {"blob_path": blob_path}
    completion = Completion(
        job_id, attempt, common | about, hashlib.sha256(data).hexdigest(), len(data), 3, {}, **where
    )
    member.api.database.write(lambda uow: uow.attempts.complete([completion]))
