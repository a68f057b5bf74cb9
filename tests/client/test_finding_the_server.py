"""The client finds its server: by argument, environment, or a running `ondol up`; and its import is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ondol.client.settings import DEFAULT_URL, find_target

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ONDOL_URL", "ONDOL_API_KEY", "ONDOL_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def _running_up(data_dir: Path) -> None:
    (data_dir / "run").mkdir(parents=True)
    (data_dir / "run" / "api.url").write_text("http://127.0.0.1:4321\n")


def test_without_anything_it_is_the_default_port_of_this_machine() -> None:
    assert find_target().url == DEFAULT_URL


def test_a_server_that_runs_from_here_is_found(tmp_path: Path) -> None:
    _running_up(tmp_path / "ondol-data")
    assert find_target().url == "http://127.0.0.1:4321"


def test_the_environment_wins_over_a_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _running_up(tmp_path / "ondol-data")
    monkeypatch.setenv("ONDOL_URL", "http://gpu-host:8400/")
    assert find_target().url == "http://gpu-host:8400"


def test_an_argument_wins_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDOL_URL", "http://gpu-host:8400")
    monkeypatch.setenv("ONDOL_API_KEY", "from-environment")
    target = find_target("http://other", "given")
    assert (target.url, target.api_key) == ("http://other", "given")


def test_importing_the_client_loads_nothing_heavy() -> None:
    program = (
        "import sys, ondol; before = set(sys.modules); from ondol import Ondol, AsyncOndol;"
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'celery', 'redis', 'tokenizers'} & set(sys.modules);"
        "assert not heavy, heavy; assert 'httpx' not in before, 'import ondol loads httpx'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=Path(__file__).parents[2])
