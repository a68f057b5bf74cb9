"""The page on OpenAI's client, word for word: from files to a version that is served."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import openai
import pytest

from tests.cluster import REPOSITORY, Cluster

pytestmark = pytest.mark.integration

PAGE = REPOSITORY / "docs" / "openai.md"
ADDRESS = "http://127.0.0.1:8400"


def test_the_python_of_the_page_ends_with_a_model_that_answers(
    cluster: Cluster, client: openai.OpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks).replace(ADDRESS, cluster.url), encoding="utf-8")
    found = runpy.run_path(str(script))
    found["client"].close()
    job: openai.types.fine_tuning.FineTuningJob = found["job"]
    assert (job.status, job.fine_tuned_model) == ("succeeded", "all-minilm-l6-v2-reviews:1")
    printed = capsys.readouterr().out
    assert f"info published {job.fine_tuned_model}\n" in printed
    assert "of 32, evaluated: valid_loss " in printed
    assert f"{job.fine_tuned_model} {job.fine_tuned_model}\n" in printed
    assert {item["label"] for item in found["labels"][0]} == {"good", "bad"}
    assert len(found["vector"]) == 32
    assert client.models.retrieve("all-minilm-l6-v2-reviews@production").to_dict()["version"] == job.fine_tuned_model
