"""A model goes over to OpenVINO while it is served: results name the engine, the record its fidelity."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from ondol.settings import WorkerSettings
from ondol.sql.database import Database
from ondol.sql.tables import version_dtypes
from tests.served import Served
from tests.tiny_models import make_tiny_model
from tests.waiting import wait_until
from workers.worker_process import device_arguments

pytestmark = pytest.mark.integration

TEXTS = ["the fire burns below", "온돌", "a"]
SWITCH_LIMIT_S = 180


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    ondol = Served(tmp_path_factory.mktemp("openvino"), ONDOL_ENGINE="openvino", ONDOL_IMPORT_DEFAULT_MODEL="false")
    try:
        ondol.publish_all({"tiny": make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")})
        yield ondol
    finally:
        ondol.close()


def test_results_say_which_engine_made_them_and_stay_the_same(served: Served) -> None:
    before = served.embed("tiny", TEXTS)
    assert before.result["engine"] == "torch"
    wait_until(
        lambda: served.embed("tiny", TEXTS).result["engine"] == "openvino",
        within_s=SWITCH_LIMIT_S,
        what="the model to go over",
    )
    after = served.embed("tiny", TEXTS)
    assert (after.result["engine"], after.result["dtype"]) == ("openvino", "float32")
    np.testing.assert_allclose(after.vectors, before.vectors, rtol=0, atol=1e-5)
    np.testing.assert_allclose(served.call_vectors("tiny", TEXTS), before.vectors, rtol=0, atol=1e-5)
    database = Database(f"sqlite:///{served.data_dir / 'ondol.db'}")
    try:
        mine = sa.select(version_dtypes).where(version_dtypes.c.engine == "openvino")
        row = wait_until(
            lambda: database.read(lambda uow: uow.conn.execute(mine).one_or_none()),
            within_s=20,
            what="the record",
        )
    finally:
        database.close()
    assert row is not None
    assert row.fidelity["float32"]["min_cosine"] >= 0.99999
    assert not row.is_packed


def test_engine_that_is_not_installed_stops_the_start_with_a_reason(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'openvino' else find(name, package)\n"
        "from ondol.settings import WorkerSettings\n"
        "from workers.stopping import StopRequest\n"
        "from workers.worker_process import run_worker\n"
        f"sys.exit(run_worker(WorkerSettings(engine='openvino', data_dir={str(tmp_path)!r}), StopRequest()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'ondol[openvino]'" in done.stderr


def test_budget_is_measured_unless_it_is_set(tmp_path: Path) -> None:
    assert "--measure-budget" in device_arguments(WorkerSettings(data_dir=tmp_path), (0,))
    assert "--measure-budget" not in device_arguments(WorkerSettings(data_dir=tmp_path, max_batch_tokens=512), (0,))
