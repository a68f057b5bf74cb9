"""The data sets that come with Ondol are read as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training_data.conftest import MakePlan
from workers.training.data.dataset import load_dataset
from workers.training.data.examples import Dataset, TextExample
from workers.training.plan import DataFile, DataFiles, TrainPlan

pytestmark = pytest.mark.unit

DATA = Path(__file__).resolve().parents[2] / "demo" / "data"


def over(plan: TrainPlan, train: str, validation: str | None = None) -> Dataset:
    files = [DataFile(DATA / name, Path(name).name) for name in (train, validation) if name]
    return load_dataset(replace(plan, files=DataFiles(*files)))


def test_korean_topics(make_plan: MakePlan) -> None:
    plan = make_plan(("unused.csv", ""), ("also.csv", ""), columns={"text": "question"})
    data = over(plan, "chatbot-ko/test.csv", "chatbot-ko/dev.csv")
    assert data.labels == ["0", "1", "2"]
    assert data.report.class_counts.train == {"0": 212, "1": 154, "2": 134}
    assert data.report.class_counts.validation == {"0": 222, "1": 139, "2": 139}
    assert data.report.warnings == []


def test_pairs_with_scores(make_plan: MakePlan) -> None:
    columns = {"text": "sentence1_ko", "text_pair": "sentence2_ko", "label": "score"}
    plan = make_plan(("unused.csv", ""), columns=columns, problem_type="regression")
    data = over(plan, "sts-en-ko/test.csv")
    assert (len(data.train), len(data.validation)) == (337, 38)
    first = data.train[0]
    assert isinstance(first, TextExample)
    assert (first.text_pair, first.label) == ("숲이 우거진 지역에 있는 두 명의 작은 소년들이 헛간을 보고 있다.", 2.8)
