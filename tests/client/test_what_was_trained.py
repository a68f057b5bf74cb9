"""The end of a fine-tune tells people what was published, and which command uses it."""

from __future__ import annotations

from typing import Any

import pytest

from ondol.cli.trained import print_trained
from ondol.client.records import parse_result

pytestmark = pytest.mark.unit


def said_of(capsys: pytest.CaptureFixture[str], **result: Any) -> list[str]:
    print_trained(parse_result({"object": "fine_tune.result", **result}))
    return capsys.readouterr().out.splitlines()


def test_an_alias_that_others_moved_is_told_and_the_version_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    alias = {"name": "production", "is_moved": False, "points_to": "names:7"}
    lines = said_of(capsys, model="names:8", task="token-classification", metrics={}, best_step=9, alias=alias)
    assert lines == [
        "published names:8, with the weights of step 9",
        "the alias production was moved meanwhile, and still points to names:7",
        'use it: ondol tag "a text" --model names:8',
    ]


def test_a_validation_says_that_nothing_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    report = {"task": "text-classification", "labels": ["a", "b"], "num_train": 18, "num_validation": 2}
    lines = said_of(capsys, model=None, report={**report, "max_steps": 6, "metric": "f1_macro"})
    assert (
        lines[0]
        == "the files are good, and nothing was trained: text-classification, 18 training and 2 validation rows"
    )
    assert "labels: a, b" in lines
