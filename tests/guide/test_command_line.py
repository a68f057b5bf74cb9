"""The same from a shell."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from ondol.cli.main import run

pytestmark = pytest.mark.integration

MODEL = "all-minilm-l6-v2"


def test_a_text_becomes_a_vector_as_json(ondol_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--url", ondol_url, "embed", "hello", "--model", MODEL]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["data"][0]["output"]) == 384


def test_a_file_becomes_an_array(ondol_url: str, tmp_path: Path) -> None:
    texts, vectors = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    texts.write_text("one\ntwo\n세 번째\n", encoding="utf-8")
    command = ["embed", "--file", str(texts), "--model", MODEL, "--format", "npy", "--output", str(vectors), "--job"]
    assert run(["--url", ondol_url, *command]) == 0
    assert np.load(io.BytesIO(vectors.read_bytes())).shape == (3, 384)


def test_jobs_are_listed_watched_and_removed(ondol_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--url", ondol_url, "embed", "a", "--job"]) == 0
    capsys.readouterr()
    assert run(["--url", ondol_url, "jobs", "ls", "--limit", "1", "--json"]) == 0
    job_id = json.loads(capsys.readouterr().out)["data"][0]["id"]
    assert run(["--url", ondol_url, "jobs", "watch", job_id]) == 0
    assert "running -> succeeded" in capsys.readouterr().out
    assert run(["--url", ondol_url, "jobs", "rm", job_id]) == 0
    assert run(["--url", ondol_url, "jobs", "show", job_id]) == 2
    assert "ondol jobs ls" in capsys.readouterr().err


def test_models_are_listed(ondol_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--url", ondol_url, "models", "ls"]) == 0
    assert MODEL in capsys.readouterr().out


def test_an_unknown_model_says_where_to_look(ondol_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--url", ondol_url, "embed", "a", "--model", "no-such-model"]) == 2
    assert "ondol models ls" in capsys.readouterr().err
