"""Jobs and calls through a real worker and its device process equal the live Hugging Face pipelines within 1e-4."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondol.broker.calls import CallReply, CallRequest, CallSender
from ondol.contract.errors import ModelCannot
from ondol.contract.ids import new_job_id
from ondol.contract.jobs import INFERENCE_OPTIONS
from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL, JobState, Priority
from ondol.sql.records import JobRecord, NewJob, ResultRecord, VersionRecord
from tests.classification.local_runs import hugging_face
from tests.classification.models import make_classifier, make_tagger
from tests.classification.texts import LONG, PAIRS, SHORT
from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until
from workers.entities import Entity
from workers.rows import FloatArray

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TOLERANCE = 1e-4
"""The promise to users, in float32."""
JOB_LIMIT_S = 120
LABELS = ("bad", "good", "so-so")
INPUTS: list[Any] = [*SHORT, *PAIRS]
TEXT, TOKEN = JobKind.TEXT_CLASSIFICATION, JobKind.TOKEN_CLASSIFICATION
PADDED_TYPE = "deberta-v2"


class Served:
    """A cluster with one worker and one version of each tiny model; jobs go in through SQL, calls through Redis."""

    def __init__(self, cluster: Cluster, folders: dict[str, Path], redis_url: str) -> None:
        self._cluster = cluster
        self._redis_url = redis_url
        self.folders = folders
        self.versions = {name: cluster.publish(folder, name) for name, folder in folders.items()}
        cluster.start_reconciler()
        cluster.start_worker(0)
        [session] = cluster.database.read(lambda uow: uow.sessions.open_sessions())
        self._worker = session.worker

    def submit(self, name: str, kind: JobKind, inputs: Sequence[Any], **options: Any) -> str:
        """The id of a queued job."""
        version = self.versions[name]
        job = NewJob(
            id=new_job_id(),
            project_id=version.project_id,
            kind=kind,
            priority=Priority.NORMAL,
            payload=json.dumps(list(inputs)).encode(),
            options=_complete(kind, options),
            num_inputs=len(inputs),
            estimated_tokens=100,
            version_id=version.id,
            model_ref=version.ref,
        )
        self._cluster.database.write(lambda uow: uow.jobs.add_all([job]))
        return job.id

    def wait(self, job_id: str) -> JobRecord:
        """The job in its terminal state."""
        project_id = next(iter(self.versions.values())).project_id

        def ended() -> JobRecord | None:
            job = self._cluster.database.read(lambda uow: uow.jobs.get(job_id, project_id))
            return job if job.state in TERMINAL else None

        job = wait_until(ended, within_s=JOB_LIMIT_S, what=f"{job_id} to end")
        assert job is not None
        return job

    def result(self, job_id: str) -> ResultRecord:
        """The stored result of a job that succeeds."""
        job = self.wait(job_id)
        assert job.state is JobState.SUCCEEDED, job.error
        found = self._cluster.database.read(lambda uow: uow.results.get(job_id))
        assert found is not None and found.data is not None
        return found

    def call(self, name: str, kind: JobKind, inputs: Any, **options: Any) -> CallReply:
        """The worker's answer to one call."""
        [reply] = self.calls([(name, kind, inputs, options)])
        return reply

    def calls(self, wanted: Sequence[tuple[str, JobKind, Any, dict[str, Any]]]) -> list[CallReply]:
        """The answers to calls that are all in flight together."""
        requests = [self._request(*one) for one in wanted]

        async def send() -> list[CallReply]:
            sender = CallSender(self._redis_url, "api_of_tests")
            await sender.start()
            try:
                return list(await asyncio.gather(*(sender.call(self._worker, request) for request in requests)))
            finally:
                await sender.stop()

        return asyncio.run(send())

    def _request(self, name: str, kind: JobKind, inputs: Any, options: dict[str, Any]) -> CallRequest:
        version: VersionRecord = self.versions[name]
        deadline_at = time.time() + JOB_LIMIT_S
        return CallRequest(version.id, version.ref, kind, _complete(kind, options), inputs, deadline_at)


def _complete(kind: JobKind, options: dict[str, Any]) -> dict[str, Any]:
    return INFERENCE_OPTIONS[kind].model_validate({"dtype": "float32"} | options).model_dump(mode="json")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Served]:
    """One packed and one padded model of each task, served by one worker."""
    place = tmp_path_factory.mktemp("served")
    folders = {
        "packed-tagger": make_tagger(place / "packed-tagger", "wordpiece", "bert"),
        "padded-tagger": make_tagger(place / "padded-tagger", "unigram", PADDED_TYPE),
        "packed-classifier": make_classifier(place / "packed-classifier", LABELS),
        "padded-classifier": make_classifier(place / "padded-classifier", LABELS, model_type=PADDED_TYPE),
    }
    redis_server.flush()
    url = f"sqlite:///{place / 'ondol.db'}"
    with running_cluster(place, database_url=url, redis_url=redis_server.url) as cluster:
        yield Served(cluster, folders, redis_server.url)


def expected_scores(folder: Path, inputs: Sequence[Any] = INPUTS) -> FloatArray:
    """Scores [N, C] of the live pipeline, one input at a time."""
    found = [hugging_face(folder, item, truncation=True, top_k=None) for item in inputs]
    by_label = [{item["label"]: item["score"] for item in scores} for scores in found]
    return np.array([[scores[label] for label in LABELS] for scores in by_label], dtype=np.float32)


def expected_entities(folder: Path, texts: Sequence[str], strategy: str) -> list[list[Entity]]:
    """Entities of the live pipeline, which takes long texts whole only with a stride."""
    stride = {} if strategy == "none" else {"stride": 11}
    found: list[list[Entity]] = hugging_face(folder, list(texts), aggregation_strategy=strategy, **stride)
    return found


def assert_entities(found: Any, expected: list[list[Entity]]) -> None:
    """Equal in everything but the rounding of scores."""
    scores, wanted = ([entity.pop("score") for entities in lists for entity in entities] for lists in (found, expected))
    assert found == expected
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["packed-classifier", "padded-classifier"])
def test_texts_and_pairs_are_classified_as_the_pipeline_does(served: Served, name: str) -> None:
    expected = expected_scores(served.folders[name])
    stored = served.result(served.submit(name, TEXT, INPUTS))
    assert stored.data is not None
    assert (stored.summary["shape"], stored.summary["labels"]) == ([len(INPUTS), len(LABELS)], list(LABELS))
    scores = np.frombuffer(stored.data, dtype="<f4").reshape(stored.summary["shape"])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
    reply = served.call(name, TEXT, INPUTS)
    np.testing.assert_allclose(reply.vectors, expected, rtol=0, atol=TOLERANCE)
    assert reply.about == {key: stored.summary[key] for key in ("labels", "top_k", "function", "threshold")}
    assert reply.tokens == stored.summary["tokens"]


@pytest.mark.parametrize("strategy", ["none", "simple", "average"])
@pytest.mark.parametrize("name", ["packed-tagger", "padded-tagger"])
def test_texts_are_tagged_as_the_pipeline_does(served: Served, name: str, strategy: str) -> None:
    texts = SHORT if strategy == "none" else [*SHORT, LONG]
    options: dict[str, Any] = {"aggregation_strategy": strategy, "stride": 11}
    stored = served.result(served.submit(name, TOKEN, texts, **options))
    assert stored.data is not None
    assert stored.summary["format"] == "json" and stored.summary["truncated"] == []
    assert_entities(json.loads(stored.data), expected_entities(served.folders[name], texts, strategy))
    reply = served.call(name, TOKEN, texts, **options)
    assert_entities(reply.outputs, expected_entities(served.folders[name], texts, strategy))


def test_one_version_serves_its_head_and_its_vectors_at_the_same_time(served: Served) -> None:
    wanted: list[tuple[str, JobKind, Any, dict[str, Any]]] = []
    for i in range(24):
        text = [f"{SHORT[i % 4]} {i}"]
        wanted += [
            ("packed-classifier", TEXT, text, {}),
            ("packed-classifier", JobKind.EMBEDDING, text, {"pooling": "cls"}),
            ("packed-tagger", TOKEN, text, {"aggregation_strategy": "none", "ignore_labels": ()}),
            ("packed-tagger", JobKind.EMBEDDING, text, {"pooling": "none"}),
        ]
    alone = {i: served.call(*wanted[i][:3], **wanted[i][3]) for i in range(4)}
    together = served.calls(wanted)
    for i, reply in enumerate(together):
        name, kind, [text], _ = wanted[i]
        if kind is TEXT:
            expected = expected_scores(served.folders[name], [text])
            np.testing.assert_allclose(reply.vectors, expected, rtol=0, atol=TOLERANCE)
        elif kind is TOKEN:
            expected_tokens = hugging_face(served.folders[name], text, aggregation_strategy="none", ignore_labels=[])
            assert_entities(reply.outputs, [expected_tokens])
    for i in (1, 3):
        np.testing.assert_allclose(together[i].vectors[0], alone[i].vectors[0], rtol=0, atol=1e-5)


def test_a_job_fails_only_if_all_its_inputs_fail(served: Served) -> None:
    partly = served.result(served.submit("packed-classifier", TEXT, [LONG, "a"], truncate="error"))
    assert partly.summary["errors"]["0"]["code"] == "context_length_exceeded"
    assert list(partly.summary["errors"]) == ["0"]
    wholly = served.wait(served.submit("packed-classifier", TEXT, [LONG, PAIRS[4]], truncate="error"))
    assert wholly.state is JobState.FAILED
    assert wholly.error is not None and wholly.error["code"] == "context_length_exceeded"


def test_a_version_without_the_head_says_what_it_can_do(served: Served) -> None:
    failed = served.wait(served.submit("packed-tagger", TEXT, ["a"]))
    assert failed.error is not None and failed.error["code"] == "model_has_no_head"
    assert "token-classification" in failed.error["message"]
    with pytest.raises(ModelCannot, match="no trained head"):
        served.call("packed-classifier", TOKEN, ["a"])
