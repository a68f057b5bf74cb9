"""An error that passes costs a job another attempt, never its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import workers.outcomes
from models_store.result_blobs import ResultBlobs
from ondol.contract.errors import DeviceLost, InvalidPayload, OndolError
from ondol.contract.kinds import JobKind
from ondol.contract.payloads import TextClassificationOptions
from ondol.contract.states import Priority
from ondol.sql.records import ClaimedJob, Completion, Failure
from tests.classification.local_runs import begun, logits_of
from tests.classification.models import make_classifier
from tests.model_store.away import store_behind_a_driver
from workers.outcomes import Prepared, outcome_of

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("classifier") / "model", ("no", "yes", "maybe"))


def prepared(classifier: Path, errors: Sequence[OndolError | None], *, attempt: int = 1) -> Prepared:
    """A job of so many inputs, each of which ended well or with its error."""
    task = begun(classifier, TextClassificationOptions(), [f"warm floor {i}" for i in range(len(errors))])
    for row, error in zip(task.work.rows, errors, strict=True):
        task.work.settle(row, None if error else logits_of(classifier, row), error)
    job = ClaimedJob(
        id="job_1",
        attempt=attempt,
        project_id="prj_1",
        kind=JobKind.TEXT_CLASSIFICATION,
        priority=Priority.NORMAL,
        version_id="ver_1",
        model_ref="m:1",
        options={},
        payload=b"",
        num_inputs=len(errors),
        is_alone=False,
        num_losses=0,
        created_at=0.0,
        claimed_at=1.0,
        deadline_at=None,
    )
    return Prepared(job, task)


def test_a_large_result_waits_for_a_store_that_is_away(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.outcomes, "MAX_INLINE_RESULT_BYTES", 1)
    found = outcome_of(prepared(classifier, [None]), ResultBlobs(store_behind_a_driver(monkeypatch)))
    assert isinstance(found, Failure)
    assert found.error["code"] == "store_unavailable" and found.retry_after_s is not None


def test_an_input_whose_error_passes_is_run_again_with_its_job(classifier: Path, tmp_path: Path) -> None:
    blobs = ResultBlobs(f"file://{tmp_path}")
    errors: list[OndolError | None] = [None, DeviceLost("the device process ended"), InvalidPayload("too long")]
    first = outcome_of(prepared(classifier, errors), blobs, max_attempts=3)
    assert isinstance(first, Failure)
    assert first.error["code"] == "device_lost" and first.retry_after_s is not None
    second = outcome_of(prepared(classifier, [None, None, errors[2]], attempt=2), blobs, max_attempts=3)
    assert isinstance(second, Completion)
    assert list(second.summary["errors"]) == ["2"], "what is wrong with an input itself stays with it"


def test_the_last_attempt_keeps_what_it_has(classifier: Path, tmp_path: Path) -> None:
    errors: list[OndolError | None] = [None, DeviceLost("the device process ended")]
    found = outcome_of(prepared(classifier, errors, attempt=3), ResultBlobs(f"file://{tmp_path}"), max_attempts=3)
    assert isinstance(found, Completion)
    assert found.summary["errors"]["1"]["code"] == "device_lost"
