"""The benchmark suite runs: its command lines, its arithmetic, and its smallest line from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.all import LINES, choose
from bench.report import Figure, Line, as_text, load, percentile
from bench.table import render
from tests.cluster import REPOSITORY

pytestmark = pytest.mark.bench

MACHINE = {"num_cores": 2, "cpu": "a processor", "measured_at": "2026-01-01 00:00 UTC"}


@pytest.mark.parametrize("line", [*LINES, "all", "table"])
def test_every_line_explains_itself(line: str) -> None:
    done = run("-m", f"bench.{line}", "--help")
    assert f"bench.{line}" in done.stdout


def test_lines_run_in_the_suites_order_and_the_longest_only_in_full() -> None:
    assert choose("calls, bulk", is_full=False) == ("bulk", "calls")
    assert "million" not in choose(None, is_full=False)
    assert choose(None, is_full=True) == LINES
    with pytest.raises(SystemExit, match="speed"):
        choose("speed", is_full=False)


def test_a_line_survives_its_file_and_becomes_a_table(tmp_path: Path) -> None:
    line = Line("bulk", "texts", {"is_full": True}, machine=dict(MACHINE))
    line.add_ratio("theirs ÷ ours", [3.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    line.leave_out("openvino: it is not installed")
    read = load(line.save(tmp_path))
    assert read == line
    table = render(read)
    assert "| theirs ÷ ours | 3× | 2 to 3 (3 rounds) |" in table
    assert "openvino" in table


def test_figures_are_medians_with_their_spread() -> None:
    text = as_text(Figure("wall", "s", (3.0, 1.0, 2.0)))
    assert text.split()[:3] == ["wall", "2", "s"]
    assert "1 to 3" in text
    assert percentile(range(1, 101), 99) == 99
    assert percentile([5.0], 50) == 5.0


def test_simulated_workers_complete_every_job_beside_synthetic_ones(tmp_path: Path) -> None:
    run(
        *("-m", "bench.scale", "--rounds", "1", "--num-jobs", "100", "--rows", "200", "--workers", "1", "2"),
        *("--out", str(tmp_path)),
    )
    saved = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))
    names = {figure["name"] for figure in saved["figures"]}
    assert "SQLite, 200 finished, 2 simulated: jobs a second" in names


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the suite's programs; its output."""
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done
