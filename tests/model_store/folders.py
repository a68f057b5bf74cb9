"""Small version folders for the store: a real safetensors file, JSON and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def make_version(folder: Path, *, seed: int = 0, num_values: int = 1_000) -> Path:
    """A folder of three files, one of them in a sub-folder; other seeds give other weights and the same text."""
    (folder / "1_Pooling").mkdir(parents=True)
    weights = np.random.default_rng(seed).standard_normal(num_values, dtype=np.float32)
    save_file({"weight": weights}, folder / "model.safetensors")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (folder / "README.md").write_text("# 온돌\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a version has, by relative path; the cache's own marker is left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
