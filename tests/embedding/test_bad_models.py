"""A folder that is refused leaves nothing behind: no version, no files in the store, an empty staging folder."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.embedding.conftest import Models
from tests.http.test_bad_input import assert_refused
from tests.served import Served
from workers.offline_models import MINILM

pytestmark = pytest.mark.integration


def rename_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0] * 1000}, protocol=2))


def ask_for_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text("raise SystemExit('this was run')")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (rename_a_pickle, "pickle renamed to .safetensors"),
    "remote": (ask_for_remote_code, "code that comes with a model is never run"),
    "gone": (shutil.rmtree, "has no folder"),
}


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_refused_folders_leave_nothing(served: Served, models: Models, tmp_path: Path) -> None:
    before = files_of(served.data_dir / "store")
    ids = {}
    for name, (spoil, _) in BAD.items():
        folder = Path(shutil.copytree(models.folders["tiny-plain"], tmp_path / name))
        spoil(folder)
        ids[name] = served.start_import(folder, f"bad-{name}")
    for name, job_id in ids.items():
        job = served.wait(job_id)
        assert (job["status"], job["error"]["code"]) == ("failed", "model_refused"), job
        assert BAD[name][1] in job["error"]["message"]
        assert served.http.get(f"/v1/jobs/{job_id}/result").status_code == 409
        assert_refused(served.http.get(f"/v1/models/bad-{name}"), 404, ...)
        assert_refused(served.call(f"bad-{name}", "a"), 404, "model")
    assert files_of(served.data_dir / "store") == before
    assert [path for path in (served.data_dir / "staging").rglob("*") if path.name.startswith("job_")] == []


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "-x", "Upper", ".hidden", "x" * 97, "a\u0000b", "name:3"])
def test_a_name_that_leads_elsewhere_is_refused_at_once(served: Served, models: Models, name: str) -> None:
    body = {"kind": "import", "input": {"path": str(models.folders[MINILM])}, "options": {"name": name}}
    assert_refused(served.http.post("/v1/jobs", json=body), 400, "options.name")


@pytest.mark.parametrize("ref", ["../../etc", "..", f"{MINILM}:0", f"{MINILM}:x", f"{MINILM}@../x", "%2e%2e"])
def test_a_reference_that_leads_elsewhere_is_refused(served: Served, models: Models, ref: str) -> None:
    assert_refused(served.call(ref, "a"), 400, "model")
    assert_refused(served.submit(ref, "a"), 400, "model")


def test_a_version_that_is_not_there_is_not_found(served: Served, models: Models) -> None:
    assert_refused(served.submit(f"{MINILM}:99", "a"), 404, "model")
    assert_refused(served.submit(f"{MINILM}@production", "a"), 404, "model")
