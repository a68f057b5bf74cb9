"""The README's Python, word for word, against a running stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

README = Path(__file__).resolve().parents[2] / "README.md"
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


def test_the_python_of_the_readme_runs_as_it_stands(ondol_url: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "reviews.csv").write_text(REVIEWS, encoding="utf-8")
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks).replace(ADDRESS, ondol_url), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "ONDOL_URL": ondol_url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(2, 384)", "4 (2, 384)", "reviews:1", "good", "384"]
