"""The number format of the weights is asked for, or found out once for each version and kind of device; it is shown."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa

from ondol.contract.model_ref import parse_model_ref
from ondol.sql.database import Database
from ondol.sql.tables import version_dtypes
from tests.embedding.conftest import Models
from tests.embedding.reference import assert_equal, encode
from tests.embedding.texts import ENGLISH, KOREAN
from tests.http.test_bad_input import assert_refused
from tests.served import Served
from workers.offline_models import E5, MINILM

pytestmark = pytest.mark.integration

CLOSE = 0.999
"""Least cosine of bfloat16 to float32; a wrong layer or pooling is far below."""


@pytest.fixture(scope="module")
def has_bfloat16(served: Served) -> bool:
    return "bf16" in served.workers()[0]["device_kind"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_result_shows_dtype_and_engine(served: Served, models: Models, dtype: str, has_bfloat16: bool) -> None:
    if dtype == "bfloat16" and not has_bfloat16:
        assert_refused(served.call(MINILM, "a", dtype=dtype), 400, ...)
        return
    done = served.embed(MINILM, ENGLISH + KOREAN, dtype=dtype)
    assert (done.result["dtype"], done.result["engine"], done.result["model"]) == (dtype, "torch", f"{MINILM}:1")
    expected = encode(models.folders[MINILM], ENGLISH + KOREAN)
    if dtype == "float32":
        assert_equal(done.vectors, expected)
    else:
        assert (np.sum(done.vectors * expected, axis=1) > CLOSE).all()
        assert not np.allclose(done.vectors, expected, rtol=0, atol=1e-5)  # it did run in the other format
    # Vectors leave as float32, brought to length one after the cast.
    np.testing.assert_allclose(np.linalg.norm(done.vectors, axis=1), 1, rtol=0, atol=1e-6)


def test_both_formats_of_a_model_are_served_side_by_side(served: Served, models: Models, has_bfloat16: bool) -> None:
    if not has_bfloat16:
        pytest.skip("this processor has no bfloat16")
    exact = served.call_vectors("tiny-plain", "warm", dtype="float32")
    rough = served.call_vectors("tiny-plain", "warm", dtype="bfloat16")
    assert not np.array_equal(exact, rough)
    np.testing.assert_array_equal(served.call_vectors("tiny-plain", "warm", dtype="float32"), exact)


def test_a_format_that_the_device_does_not_run_is_refused(served: Served, models: Models) -> None:
    answer = served.call(MINILM, "a", dtype="float16")
    assert answer.status_code == 400, answer.text
    assert "float32" in answer.json()["error"]["message"]
    job = served.wait(served.submit(MINILM, "a", dtype="float16").json()["id"])
    assert (job["status"], job["error"]["param"]) == ("failed", "options.dtype")


def test_an_unknown_format_is_refused(served: Served, models: Models) -> None:
    assert_refused(served.submit(MINILM, "a", dtype="float64"), 400, "options.dtype")
    assert_refused(served.call(MINILM, "a", dtype="float64"), 400, "dtype")


def test_auto_is_found_out_at_import_and_kept(served: Served, models: Models, has_bfloat16: bool) -> None:
    kind = served.workers()[0]["device_kind"]
    database = Database(f"sqlite:///{served.data_dir / 'ondol.db'}")
    try:
        project = database.read(lambda uow: uow.keys.project_id())
        assert project is not None
        for name, imported in models.imported.items():
            shown = imported["device"]
            version = database.read(lambda uow, ref=name: uow.models.resolve(parse_model_ref(ref), project))  # type: ignore[misc]  # bound at definition
            mine = version_dtypes.c.manifest_digest == version.manifest_digest
            rows = database.read(lambda uow, mine=mine: uow.conn.execute(sa.select(version_dtypes).where(mine)).all())  # type: ignore[misc]  # bound at definition
            [row] = rows
            assert (row.device_kind, row.engine, row.dtype) == (kind, "torch", shown["dtype"])
            assert shown["device_kind"] == kind
            assert served.http.get(f"/v1/models/{name}").json()["dtypes"][kind]["dtype"] == shown["dtype"]
            assert row.dtype == "float32" or has_bfloat16
            fidelity = row.fidelity[row.dtype]
            assert fidelity["mean_cosine"] >= 0.9999 and fidelity["min_cosine"] >= 0.9998
    finally:
        database.close()


def test_every_packaged_model_is_packed(models: Models) -> None:
    assert models.imported[E5]["device"]["is_packed"]
