"""Whatever bytes come, our parsers take them or refuse them with an error of ours; nothing else gets out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from models_store.checkpoints import MANIFEST_FILE, CheckpointStore
from models_store.manifest import ManifestFile, make_manifest, parse_manifest
from models_store.safetensors_header import read_header
from models_store.store import ModelStore
from ondol.broker.call_worker import parse_request as parse_call
from ondol.contract.errors import InvalidPayload, ModelRefused, ModelStoreError, OndolError
from ondol.contract.frames import FrameError, pack_frame, unpack_frame
from ondol.contract.jobs import InputLimits, parse_job
from ondol.contract.model_ref import NAME_PATTERN, check_model_name, parse_model_ref
from tests.hostile.outcomes import outcome
from tests.hostile.strategies import deep_json, dump, json_values, odd_texts, one_thing_wrong, torn
from tests.hypothesis_runs import bounded
from workers.device.wire import parse_request

pytestmark = pytest.mark.unit

MODEL = {"key": "d:float32", "ref": "m:1", "path": "/nowhere", "dtype": "float32"}
RUN = {
    "op": "run",
    "id": 2,
    "model": MODEL,
    "spec": {"task": "embedding", "pooling": ["mean"], "layer": -1},
    "lengths": [2, 1],
    "skip": None,
    "has_type_ids": False,
}
CALL = {
    "v": 1,
    "id": "call_1",
    "api": "api_1",
    "version_id": "ver_1",
    "model_ref": "tiny:1",
    "kind": "embedding",
    "options": {},
    "inputs": ["a text"],
    "deadline_at": 1.0,
    "priority": "interactive",
}
JOB = {"kind": "embedding", "model": "tiny", "input": ["a text"], "options": {"normalize": True}, "metadata": {}}
FILES = [ManifestFile("config.json", 2, "0" * 64), ManifestFile("model.safetensors", 4, "1" * 64)]
FRAME = pack_frame(RUN, (b"\0" * 12,))
TENSORS = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
SAFETENSORS = len(TENSORS).to_bytes(8, "little") + TENSORS + b"\0" * 8


@bounded(150, num_long=20_000)
@given(data=torn(FRAME))
def test_a_torn_frame_is_a_frame_error(data: bytes) -> None:
    try:
        header, _ = unpack_frame(data)
    except FrameError:
        return
    assert isinstance(header, dict)


def test_a_header_nested_without_end_is_a_frame_error() -> None:
    head = b'{"a":' + deep_json() + b"}"
    with pytest.raises(FrameError):
        unpack_frame(len(head).to_bytes(4, "little") + (0).to_bytes(8, "little") + head)


@bounded(200, num_long=20_000)
@given(header=one_thing_wrong(RUN) | one_thing_wrong({"op": "load", "id": 1, "model": MODEL}) | st.just({}))
def test_a_wrong_request_to_the_device_is_an_invalid_payload(header: dict[str, Any]) -> None:
    found = outcome(lambda: parse_request(header, memoryview(b"\0" * 12)), InvalidPayload)
    assert not isinstance(found, InvalidPayload) or found.message


@bounded(200, num_long=20_000)
@given(header=one_thing_wrong(CALL) | json_values)
@example(header=CALL | {"deadline_at": 10**400})
@example(header=CALL | {"inputs": 7})
@example(header=CALL | {"inputs": [{"text": 7}]})
def test_a_wrong_call_is_left_unread(header: Any) -> None:
    parsed = parse_call(pack_frame(header))
    if parsed is not None:
        _, request = parsed
        assert isinstance(request.inputs, list) and isinstance(request.options, dict)
        assert all(isinstance(item, str | list | dict) for item in request.inputs)


@bounded(200, num_long=20_000)
@given(text=odd_texts | st.from_regex(NAME_PATTERN) | st.from_regex(r"[a-z0-9._-]{1,20}[:@][a-zA-Z0-9._-]{0,12}"))
def test_a_reference_is_read_back_as_it_was_written(text: str) -> None:
    ref = outcome(lambda: parse_model_ref(text), InvalidPayload)
    assert ref.param == "model" if isinstance(ref, InvalidPayload) else str(ref) == text


@bounded(100, num_long=10_000)
@given(text=odd_texts)
def test_a_name_of_a_model_is_safe_in_paths_and_addresses(text: str) -> None:
    try:
        name = check_model_name(text, param="model")
    except InvalidPayload:
        return
    assert name.isascii() and "/" not in name and not name.startswith(".")


@bounded(200, num_long=20_000)
@given(body=one_thing_wrong(JOB) | json_values)
def test_a_wrong_job_is_an_error_of_the_contract(body: Any) -> None:
    job = outcome(lambda: parse_job(body, InputLimits()), OndolError)
    if not isinstance(job, OndolError):
        json.dumps(job.request.metadata, allow_nan=False).encode()


@bounded(150, num_long=20_000)
@given(
    data=torn(make_manifest(FILES)[1]) | one_thing_wrong({"files": [], "format": 1}).map(dump) | json_values.map(dump)
)
@example(data=deep_json())
@example(data=b'{"format": 1, "files": ' + deep_json('{"path": ', "}") + b"}")
def test_a_wrong_manifest_is_refused_though_its_digest_is_right(data: bytes) -> None:
    try:
        manifest = parse_manifest(data, hashlib.sha256(data).hexdigest())
    except ModelStoreError:
        return
    assert all(not file.path.startswith("/") and ".." not in file.path.split("/") for file in manifest.files)


@bounded(60, num_long=3_000)
@given(
    data=torn(make_manifest(FILES)[1]) | one_thing_wrong({"files": [], "format": 1}).map(dump) | json_values.map(dump)
)
@example(data=deep_json())
@example(data=dump({"files": [{"path": "../../out", "size_bytes": 1, "sha256": "0" * 64}], "format": 1}))
@example(data=dump({"files": 7}))
@example(data=dump({"files": [7]}))
def test_a_wrong_manifest_of_a_checkpoint_brings_no_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "store" / "checkpoints" / "job_1" / "4-1"
        folder.mkdir(parents=True)
        (folder / MANIFEST_FILE).write_bytes(data)
        store, target = CheckpointStore(f"file://{root / 'store'}"), root / "deep" / "target"
        try:
            digest = make_manifest([ManifestFile(**one) for one in json.loads(data)["files"]])[0].digest
        except Exception:  # noqa: BLE001 - it names no files: any digest will do
            digest = "0" * 64
        try:
            store.fetch(target, job_id="job_1", step=4, attempt=1, manifest_digest=digest)
        except ModelStoreError:
            assert not target.exists()
        else:
            assert list(target.iterdir()) == [], "there is no file beside the manifest"
        assert not (root / "out").exists() and not (root / "deep" / "out").exists()


@bounded(60, num_long=3_000)
@given(digest=odd_texts)
def test_a_digest_leads_nowhere_but_into_the_store(digest: str) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.raises(ModelStoreError):
        ModelStore(f"file://{name}").read_manifest(digest)


@bounded(100, num_long=5_000)
@given(data=torn(SAFETENSORS))
@example(data=len(deep_json()).to_bytes(8, "little") + deep_json())
@example(data=SAFETENSORS.replace(b"[2]", b"[9" + b"9" * 400 + b"]"))
def test_weights_that_are_none_are_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        path.write_bytes(data)
        try:
            tensors = read_header(path, "model.safetensors")
        except ModelRefused:
            return
        assert sum(tensor.end - tensor.start for tensor in tensors.values()) <= len(data)
