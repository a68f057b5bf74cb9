"""The OpenVINO engine: models go over to it in the background, and give what torch gives, or torch goes on.

OpenVINO is part of the extra `dev`; nothing here is installed by a test.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ondol.contract.errors import InvalidPayload, ModelCannot, OutOfDeviceMemory
from tests.device_child import REAL_PROGRAM, child_environment, device_child, model_header, run_frame, vectors_of
from tests.equal_to_reference.engines import make_engine, run_rows, vectors
from tests.tiny_models import make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from tests.waiting import wait_until
from workers.device.device_kinds import device_kind, native_dtypes
from workers.device.engine import Fidelity, FloatArray, LoadRequest, RunResult
from workers.device.fidelity import MIN_COSINE, compare
from workers.device.loading import load_model
from workers.device.openvino_cache import Conversion, ConversionCache, DtypeReport, openvino_version, source_digest
from workers.device.openvino_child import tokens_of_lengths
from workers.device.openvino_model import OpenVinoModel
from workers.device.openvino_switch import MIN_FLOAT32_COSINE, WORTH_S, OpenVinoSwitch, is_faithful, is_faster
from workers.device.rows import Rows
from workers.device.states import States
from workers.device.torch_engine import TorchEngine

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
SWITCH_LIMIT_S = 120
LITTLE = 40 * 1024 * 1024
TOLERANCE = 1e-5
"""Float32 rounding in another order of additions, in units of the largest value."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return write_spec(folder, model_spec_of(folder))


@pytest.fixture(scope="module")
def engine(root: Path, folder: Path) -> TorchEngine:
    """An engine whose model has gone over."""
    return _gone_over(root, folder)


def _gone_over(root: Path, folder: Path) -> TorchEngine:
    engine = TorchEngine(CPU, memory_bytes=2**30, batch_tokens=1024, switch=_switch(root))
    first = run_rows(engine, folder, [[2, 3]])
    assert (first.engine, first.is_packed) == ("torch", True), "torch serves while the model is converted"
    wait_until(lambda: run_rows(engine, folder, [[2, 3]]).engine == "openvino", within_s=SWITCH_LIMIT_S, what="switch")
    return engine


def _cache(root: Path) -> ConversionCache:
    return ConversionCache(root, device_kind=device_kind(CPU), openvino=openvino_version() or "")


def _switch(root: Path) -> OpenVinoSwitch:
    return OpenVinoSwitch(root, _cache(root), threads=1, is_forced=True)


def _rows(seed: int, num_rows: int = 12, longest: int = 60) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    lengths = [1, 2, longest, *generator.integers(1, longest, num_rows - 3)]
    return [generator.integers(4, 400, length).tolist() for length in lengths]


def _assert_close(found: FloatArray, expected: FloatArray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("pooling", [None, ("mean",), ("cls",), ("last",), ("max",), ("weightedmean",), ("none",)])
def test_vectors_are_those_of_torch_in_any_company(
    engine: TorchEngine, folder: Path, pooling: tuple[str, ...] | None
) -> None:
    rows = _rows(1)
    found = run_rows(engine, folder, rows, pooling=pooling)
    expected = vectors(make_engine(), folder, rows, pooling=pooling)
    assert (found.engine, found.is_packed) == ("openvino", False)
    _assert_close(found.vectors, expected)
    _assert_close(np.concatenate([vectors(engine, folder, [row], pooling=pooling) for row in rows]), expected)


def test_padding_stays_small_and_is_counted(engine: TorchEngine, folder: Path) -> None:
    assert run_rows(engine, folder, [[2, 5, 3], [2, 5, 3]]).num_padding == 0
    rows = _rows(2, num_rows=40)
    assert 0 < run_rows(engine, folder, rows).num_padding < 0.25 * sum(map(len, rows))


def test_what_was_not_converted_is_run_by_torch(engine: TorchEngine, folder: Path) -> None:
    rows = _rows(3, num_rows=4)
    low = run_rows(engine, folder, rows, layer=1)
    assert low.engine == "torch"
    _assert_close(low.vectors, vectors(make_engine(), folder, rows, layer=1))
    if model_spec_of(folder).has_pooler:
        pooled = run_rows(engine, folder, rows, pooling=("pooler",))
        assert pooled.engine == "torch"
    else:
        with pytest.raises(ModelCannot):
            run_rows(engine, folder, rows, pooling=("pooler",))
    if model_spec_of(folder).type_vocab_size > 1:
        pairs = run_rows(engine, folder, rows, type_ids=[[1] * len(row) for row in rows])
        assert pairs.engine == "torch"


GROWTH = """
import os, sys
from pathlib import Path
import numpy as np
from workers.device import openvino_model
from workers.device.rows import Rows

xml, dtype, kept = sys.argv[1:]
openvino_model._KEPT_OPERATIONS = int(kept)
model = openvino_model.OpenVinoModel(Path(xml), dtype=dtype, threads=1, pad_token_id=0)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

for number in range(600):  # as many sizes: 13 and 47 have no common factor
    rows, length = 1 + number % 13, 1 + number % 47
    model.forward(Rows(np.full(rows, length, dtype=np.int64), np.full(rows * length, 17, dtype=np.int32)))
    early = resident() if number == 100 else early if number else 0
print(resident() - early)
"""


def test_no_more_than_so_much_is_kept_of_what_was_compiled_for_sizes_of_batches(
    engine: TorchEngine, root: Path, folder: Path
) -> None:
    del engine  # it has converted the model
    found = _cache(root).find(source_digest(folder))
    assert found is not None

    def growth(kept: int) -> int:
        argv = [sys.executable, "-c", GROWTH, str(found.xml), native_dtypes(CPU)[-1], str(kept)]
        return int(subprocess.run(argv, env=child_environment(), check=True, stdout=subprocess.PIPE).stdout)

    few, many = growth(100), growth(5_000)
    assert few < max(0.7 * many, LITTLE), (few, many)


def test_bad_rows_are_refused_as_by_torch(engine: TorchEngine, folder: Path) -> None:
    for rows in ([[2, 400]], [[2] * 65]):
        with pytest.raises(InvalidPayload):
            run_rows(engine, folder, rows)


def test_memory_that_runs_out_halves_the_batch(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _gone_over(root, folder)  # one of its own: it learns a budget
    rows = _rows(4, longest=20)
    whole = vectors(engine, folder, rows)
    real = OpenVinoModel.forward

    def forward(self: OpenVinoModel, part: object) -> object:
        if len(part.token_ids) > 30:  # type: ignore[attr-defined]  # Rows
            raise OutOfDeviceMemory("full")
        return real(self, part)  # type: ignore[arg-type]  # Rows

    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoModel, "forward", forward)
        result: RunResult = run_rows(engine, folder, rows)
    assert result.num_halvings > 0
    _assert_close(result.vectors, whole)


def test_kept_conversion_is_verified(root: Path, folder: Path, engine: TorchEngine, tmp_path: Path) -> None:
    del engine  # it has converted the model
    digest = source_digest(folder)
    found = _cache(root).find(digest)
    assert found is not None
    assert set(found.dtypes) == set(native_dtypes(CPU))
    assert is_faithful(found.dtypes["float32"], "float32")
    assert not list(root.glob(".staging-*"))
    with _cache(tmp_path).staging() as staged:
        for file in ("model.xml", "model.bin"):
            (staged / file).write_bytes((found.xml.parent / file).read_bytes())
        _cache(tmp_path).keep(staged, digest, found.dtypes)
    copy = _cache(tmp_path).find(digest)
    assert copy is not None
    assert copy.dtypes == found.dtypes
    weights = copy.xml.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert _cache(tmp_path).find(digest) is None, "a damaged one is no conversion"
    assert not weights.exists()


def test_a_length_that_tracing_has_fixed_is_found(
    root: Path, folder: Path, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    del engine  # it has converted the model
    found = _cache(root).find(source_digest(folder))
    assert found is not None
    spec = model_spec_of(folder)
    loaded = load_model(model_handle(folder), spec, CPU)
    own = tokens_of_lengths(loaded, spec)
    loaded.converted = OpenVinoModel(found.xml, dtype="float32", threads=1, pad_token_id=spec.pad_token_id)
    assert compare(tokens_of_lengths(loaded, spec), own).min_cosine >= MIN_FLOAT32_COSINE
    real = OpenVinoModel.forward

    def forward(self: OpenVinoModel, rows: Rows) -> States:
        states = real(self, rows)
        for start, length in zip(rows.starts, rows.lengths, strict=True):
            states.hidden[start + 50 : start + length] = states.hidden[start]
        return states

    monkeypatch.setattr(OpenVinoModel, "forward", forward)
    assert compare(tokens_of_lengths(loaded, spec), own).min_cosine < MIN_COSINE


def test_other_weights_have_another_digest(folder: Path, tmp_path: Path) -> None:
    other = write_spec(make_tiny_model(tmp_path / "other", seed=7), model_spec_of(folder))
    assert source_digest(other) != source_digest(folder)


def test_device_process_goes_over_and_says_so(root: Path, folder: Path, engine: TorchEngine) -> None:
    del engine  # it has converted the model: the process finds it in the cache
    model = model_header(model_handle(folder))
    rows = _rows(5, num_rows=6)
    program = [*REAL_PROGRAM, "--engine", "openvino", "--engine-cache", str(root)]
    with device_child(program) as child:
        loaded, _ = child.ask({"op": "load", "id": 1, "model": model, "pinned": True})
        answers = []

        def has_switched() -> bool:
            answers.append(child.ask(*run_frame(2, model, rows)))
            return "switched" in answers[-1][0]

        wait_until(has_switched, within_s=SWITCH_LIMIT_S, what="the process to go over")
        header, body = answers[-1]
        assert header["switched"]["engine"] == header["engine"] == "openvino"
        assert header["switched"]["size_bytes"] > loaded["size_bytes"]
        assert header["switched"]["fidelity"]["float32"]["min_cosine"] >= 0.99999
        _assert_close(vectors_of(header, body), vectors(make_engine(), folder, rows))
        assert "switched" not in child.ask(*run_frame(3, model, rows))[0], "it is said once"


def _report(min_cosine: float = 1.0, tokens_per_s: float = 100.0, one_text_s: float = 1.0) -> DtypeReport:
    return DtypeReport(Fidelity(1.0, min_cosine), 512, tokens_per_s, 100.0, one_text_s, 1.0)


def test_only_what_is_faithful_and_faster_takes_over() -> None:
    assert not is_faithful(_report(0.9999), "float32")
    assert is_faithful(_report(0.9999), "bfloat16")
    assert not is_faithful(_report(0.999), "bfloat16")
    assert is_faster(_report(tokens_per_s=110))
    assert is_faster(_report(one_text_s=0.5))
    assert not is_faster(_report())
    assert not is_faster(_report(tokens_per_s=90, one_text_s=0.5)), "batches must lose nothing"


def test_unfaithful_conversion_is_not_used(folder: Path, root: Path, engine: TorchEngine, tmp_path: Path) -> None:
    del engine  # it has converted the model
    found = _cache(root).find(source_digest(folder))
    assert found is not None
    _keep_as(found, replace(found.dtypes["float32"], fidelity=Fidelity(0.9, 0.9)), source_digest(folder), tmp_path)
    switch = _switch(tmp_path)
    other = TorchEngine(CPU, memory_bytes=2**30, batch_tokens=1024, switch=switch)
    other.load(LoadRequest(model_handle(folder), is_pinned=False))
    wait_until(lambda: switch.is_idle, within_s=20, what="the switch to have looked")
    assert run_rows(other, folder, [[2, 3]]).engine == "torch"


def _keep_as(found: Conversion, report: DtypeReport, digest: str, root: Path) -> None:
    with _cache(root).staging() as staged:
        for file in ("model.xml", "model.bin"):
            (staged / file).write_bytes((found.xml.parent / file).read_bytes())
        _cache(root).keep(staged, digest, {"float32": report})


def test_auto_converts_what_has_computed_enough(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    monkeypatch.setattr(OpenVinoSwitch, "_convert", lambda _self, handle, _digest: converted.append(handle.key))
    switch = OpenVinoSwitch(tmp_path, _cache(tmp_path), threads=1, is_forced=False)
    handle = model_handle(folder)
    switch.loaded(handle, pad_token_id=0)
    switch.ran(handle, WORTH_S - 0.1, pad_token_id=0)
    wait_until(lambda: switch.is_idle, within_s=20, what="the switch to have looked")
    assert not converted
    switch.ran(handle, 0.2, pad_token_id=0)
    wait_until(lambda: switch.is_idle, within_s=20, what="the switch to have converted")
    switch.ran(handle, 99.0, pad_token_id=0)
    assert (converted, switch.is_idle) == ([handle.key], True)


def test_auto_takes_over_what_was_converted_before(
    folder: Path, root: Path, engine: TorchEngine, tmp_path: Path
) -> None:
    del engine  # it has converted the model
    found = _cache(root).find(source_digest(folder))
    assert found is not None
    faster = replace(found.dtypes["float32"], tokens_per_s=2.0, torch_tokens_per_s=1.0)
    _keep_as(found, faster, source_digest(folder), tmp_path)
    switch = OpenVinoSwitch(tmp_path, _cache(tmp_path), threads=1, is_forced=False)
    other = TorchEngine(CPU, memory_bytes=2**30, batch_tokens=1024, switch=switch)
    other.load(LoadRequest(model_handle(folder), is_pinned=False))
    wait_until(lambda: switch.is_idle, within_s=20, what="the switch to have looked")
    result = run_rows(other, folder, [[2, 3]])
    assert (result.engine, result.switched is not None) == ("openvino", True)
