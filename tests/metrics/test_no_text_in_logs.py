"""What a user sent is told to the user, and to no log: not by a refused row, a dead trainer, nor a refused result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
WORD = "SECRETWORD"


@pytest.mark.parametrize("form", ["json", "console"])
def test_errors_that_quote_a_text_are_logged_without_it(form: str, database_url: str) -> None:
    command = [sys.executable, "-m", "tests.metrics.quoting_errors", form, database_url, WORD]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    unrecorded, refused, died = json.loads(ended.stdout)
    assert "could not be recorded" in unrecorded and WORD not in unrecorded
    assert WORD in refused and WORD in died, "whoever owns the job reads why"
    for event in ("message.not_recorded", "attempt.not_recorded", "attempt.failed", "trainer.lost"):
        assert event in ended.stderr
    assert WORD not in ended.stderr
