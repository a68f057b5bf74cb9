"""Inputs that the planner refused are reported and never run; what stands in their place touches nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models_store.result_blobs import ResultBlobs
from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.ids import shard_id
from ondol.contract.jobs import InferenceOptions, Inputs, Pair
from ondol.contract.kinds import JobKind
from ondol.contract.payloads import TextClassificationOptions, TokenClassificationOptions
from ondol.contract.states import Priority
from ondol.sql.records import ClaimedJob, Completion, Failure
from tests.classification.local_runs import answered, begun, logits_of
from tests.classification.models import make_classifier, make_tagger
from tests.classification.texts import LONG, SHORT
from workers.inference_task import InferenceTask, TaskRequest
from workers.outcomes import Prepared, outcome_of

pytestmark = pytest.mark.unit

EMPTY = InvalidPayload("row 2: column 'text' is empty")
LABELS = ("no", "yes", "maybe")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tagger(tmp_path_factory.mktemp("tagger") / "model", "wordpiece")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("classifier") / "model", LABELS)


def run(folder: Path, options: InferenceOptions, inputs: Inputs, errors: dict[int, OndolError]) -> InferenceTask:
    """The task with these inputs refused, all its rows run."""
    task = begun(folder, options, inputs)
    kind = JobKind.TOKEN_CLASSIFICATION if isinstance(options, TokenClassificationOptions) else JobKind.EMBEDDING
    request = TaskRequest("job_1", kind, "ver_1", {}, inputs, Priority.BULK, input_errors=errors)
    task.begin(request, load_s=0.0, tokenize_s=0.0)
    for row in task.work.rows:
        task.work.settle(row, logits_of(folder, row), None)
    assert task.work.done.is_set()
    return task


def test_the_windows_of_the_others_stay_with_their_texts(tagger: Path) -> None:
    options = TokenClassificationOptions(ignore_labels=())
    inputs = [LONG, "", SHORT[0], LONG]
    found = run(tagger, options, inputs, {1: EMPTY, 3: EMPTY}).answer()
    expected = answered(tagger, options, [LONG, SHORT[0]]).outputs
    assert found.outputs is not None
    assert expected is not None
    assert [found.outputs[0], found.outputs[2]] == expected
    assert (found.outputs[1], found.outputs[3]) == ([], [])
    assert found.errors == {1: EMPTY, 3: EMPTY}
    assert (found.tokens[1], found.tokens[3], found.truncated) == (0, 0, [False] * 4)


def test_pairs_and_places_without_one_go_together(classifier: Path) -> None:
    pairs: Sequence[str | Pair] = [{"text": "warm", "text_pair": "floor"}, "", {"text": "cold", "text_pair": "wall"}]
    task = run(classifier, TextClassificationOptions(), list(pairs), {1: EMPTY})
    assert len(task.work.rows) == 2
    found = task.answer()
    alone = answered(classifier, TextClassificationOptions(), [pairs[0], pairs[2]])
    np.testing.assert_allclose(np.asarray(found.vectors)[[0, 2]], np.asarray(alone.vectors), atol=1e-6)
    assert not np.asarray(found.vectors)[1].any()


def shard_of(num_inputs: int, attempt: int = 1) -> ClaimedJob:
    return ClaimedJob(
        id=shard_id("job_1", 0),
        attempt=attempt,
        project_id="prj_1",
        kind=JobKind.TEXT_CLASSIFICATION,
        priority=Priority.BULK,
        version_id="ver_1",
        model_ref="m:1",
        options={},
        payload=b"",
        num_inputs=num_inputs,
        is_alone=False,
        num_losses=0,
        created_at=0.0,
        claimed_at=1.0,
        deadline_at=None,
    )


def test_a_shard_of_nothing_but_refused_inputs_keeps_each_reason(classifier: Path, tmp_path: Path) -> None:
    other = InvalidPayload("row 3: column 'text' is empty")
    task = run(classifier, TextClassificationOptions(), ["", ""], {0: EMPTY, 1: other})
    found = outcome_of(Prepared(shard_of(2), task, [7, "x"], frozenset({0, 1})), ResultBlobs(f"file://{tmp_path}"))
    assert isinstance(found, Completion)
    assert [found.summary["errors"][place]["message"] for place in "01"] == [EMPTY.message, other.message]
    assert (found.summary["ids"], found.tokens) == ([7, "x"], 0)


def test_a_shard_in_which_every_input_failed_on_its_own_fails(classifier: Path, tmp_path: Path) -> None:
    options = TextClassificationOptions(truncate="error", max_length=8)
    task = run(classifier, options, ["", LONG], {0: EMPTY})
    found = outcome_of(Prepared(shard_of(2), task, None, frozenset({0})), ResultBlobs(f"file://{tmp_path}"))
    assert isinstance(found, Failure)
    assert found.error["code"] == "context_length_exceeded", "not that of the refused one"
