"""The commands of docs/chaos.md as they stand, but for their length: seconds, not minutes, one breakage of all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(280)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "chaos.md").read_text(encoding="utf-8")
MINUTES = "0.04"
BREAKAGE = "usage_counted_again"


def lines() -> list[str]:
    """The page's command lines, without comments."""
    [block] = re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
    return [line.split("#")[0].strip() for line in block.strip().splitlines()]


def run_line(line: str, place: Path) -> str:
    """What the command printed; AssertionError with all of it if it failed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shortened(line: str) -> str:
    """The line with seconds instead of its minutes."""
    return re.sub(r"(MINUTES=|--minutes )\d+", rf"\g<1>{MINUTES}", line)


def test_every_line_of_the_page_is_run_here() -> None:
    tools = [line.split()[0] if line.startswith("make") else " ".join(line.split()[:3]) for line in lines()]
    assert tools == ["make", *["python -m tests.chaos"] * 3, "python -m tests.chaos.breakages"]


@pytest.mark.parametrize("line", [line for line in lines() if "--minutes" in line])
def test_a_run_holds_and_says_so(line: str, tmp_path: Path) -> None:
    printed = run_line(shortened(line), tmp_path)
    assert "all invariants hold" in printed
    if "--out" in line:
        assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["violations"] == []


def test_make_runs_it_too(tmp_path: Path) -> None:
    [line] = [line for line in lines() if line.startswith("make")]
    # The environment is the one that runs the tests: nothing is installed beside them.
    as_it_is = line.replace("make", f"make -C {ROOT} -o venv VENV={sys.prefix}", 1)
    assert "all invariants hold" in run_line(shortened(as_it_is), tmp_path)


def test_a_breakage_is_caught(tmp_path: Path) -> None:
    [line] = [line for line in lines() if line.endswith("breakages")]
    assert "1 of 1 breakages caught" in run_line(f"{line} {BREAKAGE}", tmp_path)
