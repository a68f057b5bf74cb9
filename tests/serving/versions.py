"""Versions of one tiny model that differ in their weights alone, and so in their vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file


def tiny_versions(source: Path, into: Path, *, num: int) -> list[Path]:
    """Canonical folders like `source`, the weights of the k-th times 1 + k / 8."""
    made = []
    for k in range(num):
        folder = into / f"version-{k}"
        shutil.copytree(source, folder)
        for weights in folder.rglob("*.safetensors"):
            tensors = {name: tensor * tensor.dtype.type(1 + k / 8) for name, tensor in load_file(weights).items()}
            weights.chmod(0o644)
            save_file(tensors, weights, metadata={"format": "pt"})
        made.append(folder)
    return made
