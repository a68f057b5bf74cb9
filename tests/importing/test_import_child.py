"""The child that imports: one answer, bounded in time, memory and reach, and nothing left when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ondol.contract.errors import AttemptError, AttemptTimedOut, ModelRefused, ModelStoreError
from ondol.contract.model_spec import parse_model_spec
from tests.waiting import wait_until
from workers.importing.run import IMPORT_CHILD, run_import

pytestmark = pytest.mark.integration

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 120.0

_REACHES_OUT = """
import os, resource, socket
from workers.importing.limits import limit_process
limit_process(memory_bytes=8 << 30, parent_pid=os.getppid())
print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_AS)[0] >> 30)
for reach in (lambda: socket.create_connection(("127.0.0.1", 9)), lambda: socket.getaddrinfo("localhost", 80)):
    try:
        reach()
    except PermissionError:
        print("refused")
"""

_PARENT = """
import sys
from pathlib import Path
from workers.importing.run import run_import
run_import(Path(sys.argv[1]), Path(sys.argv[2]), convert_bin=False, timeout_s=120)
"""


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(_ROOT)}


def test_a_folder_is_imported(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "staging" / "model"
    spec = run_import(plain, target, convert_bin=False, timeout_s=_LIMIT_S)
    assert parse_model_spec((target / "ondol.json").read_bytes(), ref="m:1") == spec
    assert spec.hidden_size == 32


def test_a_refusal_comes_back_as_it_was_raised_and_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    (plain / "model.safetensors").unlink()
    with pytest.raises(ModelRefused, match=r"model\.safetensors is missing") as caught:
        run_import(plain, tmp_path / "target", convert_bin=False, timeout_s=_LIMIT_S)
    assert (caught.value.code, caught.value.retryable) == ("model_refused", False)
    assert not (tmp_path / "target").exists()


def test_an_import_that_takes_too_long_is_ended(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(AttemptTimedOut, match=r"0\.2 s"):
        run_import(plain, tmp_path / "target", convert_bin=False, timeout_s=0.2)
    assert not (tmp_path / "target").exists()


def test_a_child_that_dies_is_no_refusal(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(AttemptError) as caught:
        run_import(plain, tmp_path / "target", convert_bin=False, timeout_s=_LIMIT_S, memory_mb=200)
    assert caught.value.code == "import_child_died"
    assert not (tmp_path / "target").exists()


def test_a_target_that_holds_something_is_left_alone(plain: Path) -> None:
    with pytest.raises(ModelStoreError, match="not empty"):
        run_import(plain, plain, convert_bin=False, timeout_s=_LIMIT_S)
    assert (plain / "config.json").exists()


def test_standard_output_has_one_line_of_json(plain: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers.importing", "--source", str(plain), "--target", str(tmp_path / "target")]
    ended = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    (line,) = ended.stdout.splitlines()
    answer = json.loads(line)
    assert (answer["ok"], answer["warnings"], answer["spec"]["model_type"]) == (True, [], "bert")


def test_the_child_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDOL_REDIS_URL", "redis://:secret@127.0.0.1/0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = IMPORT_CHILD.environment()
    assert "secret" not in str(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_the_child_reaches_no_network_and_leaves_no_core() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _REACHES_OUT], env=_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines() == ["(0, 0) 8", "refused", "refused"]


def test_the_child_ends_with_its_parent(plain: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PARENT, str(plain), str(tmp_path / "target")]
    with subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL) as parent:
        process = psutil.Process(parent.pid)
        (child,) = wait_until(process.children, within_s=30, what="the import child to start")
        wait_until(lambda: _is_limited(child), within_s=30, what="the import child to apply its limits")
        parent.kill()
    wait_until(lambda: not child.is_running(), within_s=30, what="the import child to end")


def test_starting_an_import_needs_neither_torch_nor_transformers() -> None:
    program = "import sys, workers.importing.run; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def _is_limited(child: psutil.Process) -> bool:
    return bool(child.rlimit(psutil.RLIMIT_CORE) == (0, 0))
