"""The README's Python and commands, word for word, against a running stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ondol.demo.stack import Stack

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
REVIEWS = "text,label\n" + "".join(
    f"the {thing} was {word} and {other},{label}\n"
    for thing in ("room", "bed", "kitchen", "floor", "host", "breakfast", "bath", "street")
    for word, other, label in (
        ("warm", "quiet", "good"),
        ("clean", "lovely", "good"),
        ("cold", "loud", "bad"),
        ("dirty", "broken", "bad"),
    )
)
ADDRESS = "http://127.0.0.1:8400"


@pytest.fixture
def place(tmp_path: Path, stack: Stack) -> Path:
    """A folder as the checkout of somebody who has started `ondol up` there."""
    (tmp_path / "reviews.csv").write_text(REVIEWS, encoding="utf-8")
    (tmp_path / "texts.txt").write_text("one\n둘\n", encoding="utf-8")
    (tmp_path / "texts.csv").write_text("id,text\na-1,one\na-2,둘\n", encoding="utf-8")
    (tmp_path / "ondol-data").symlink_to(stack.data_dir)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run_in(place: Path, command: list[str], url: str) -> list[str]:
    """The lines that the command printed; AssertionError with its errors if it failed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env={**os.environ, "ONDOL_URL": url, "PATH": path},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.splitlines()


def test_the_python_of_the_readme_runs_as_it_stands(stack: Stack, place: Path) -> None:
    assert len(blocks("python")) == 6
    script = place / "readme.py"
    script.write_text("\n".join(blocks("python")).replace(ADDRESS, stack.url), encoding="utf-8")
    printed = run_in(place, [sys.executable, str(script)], stack.url)
    assert printed == ["(2, 384)", "4 (2, 384)", "reviews:1", "good", "384", "384"]
    assert parquet.read_table(place / "vectors.parquet")["id"].to_pylist() == ["a-1", "a-2"]


def test_the_commands_of_docs_cli_about_files_run_as_they_stand(stack: Stack, place: Path) -> None:
    """A classifier of the name that they use is trained before."""
    [block] = [one for one in re.findall(r"```\n(.*?)```", CLI_PAGE, flags=re.DOTALL) if one.startswith("ondol embed")]
    texts = pa.table({"id": ["r-1", "r-2"], "text": ["the room was warm", "the bed was cold"]})
    parquet.write_table(texts, place / "reviews.parquet")
    (place / "train.csv").write_text(REVIEWS, encoding="utf-8")
    (place / "reviews.csv").write_text("no,review\n7,warm and quiet\n8,cold and loud\n", encoding="utf-8")
    train = "ondol fine-tune train.csv --model all-minilm-l6-v2 --name sentiment --epochs 1 --watch"
    run_in(place, ["bash", "-c", "\n".join(["set -e", train, block])], stack.url)
    assert parquet.read_table(place / "vectors.parquet")["id"].to_pylist() == ["7", "8"]
    assert len((place / "labels.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_the_commands_of_the_readme_run_as_they_stand(stack: Stack, place: Path) -> None:
    commands = next(block for block in blocks("sh") if block.startswith("ondol embed"))
    posts = next(block for block in blocks("sh") if block.startswith("curl"))
    script = "\n".join(["set -e", commands, posts]).replace("--epochs 6", "--epochs 0.05")
    printed = run_in(place, ["bash", "-c", script.replace("localhost:8400", stack.url)], stack.url)
    text = "\n".join(printed)
    assert "Anna" in text and "cards:1" in text and '"object":"list"' in text
    assert (place / "vectors.npy").stat().st_size > 2 * 384 * 4
