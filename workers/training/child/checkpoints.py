"""Checkpoint folders: appear whole and synced, never change afterwards, and hold all that a resume needs.

Beside the model and the Trainer's own files, `ondol-training.json` holds what the Trainer does not keep.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerState

from ondol.contract.errors import ModelStoreError

STATE_FILE = "ondol-training.json"
TRAINER_STATE_FILE = "trainer_state.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which numbers come out bit-equal; a resume under others is inexact."""

    device_kind: str
    threads: int
    dtype: str
    torch: str = torch.__version__
    transformers: str = transformers.__version__


@dataclass(frozen=True, slots=True)
class RunState:
    """What a resumed run must know beyond the Trainer's state; the losses are those no log line was made of yet."""

    conditions: Conditions
    fresh: tuple[str, ...]
    """Parameters that the base did not have."""
    loss_since_log: float
    loss_total: float
    last_logged_step: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    log_history: list[dict[str, Any]]
    state: RunState


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, which somebody has verified; ModelStoreError if its JSON files are not ours."""
    try:
        trainer = json.loads((folder / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ValueError("written by another version")
        conditions = Conditions(**content.pop("conditions"))
        state = RunState(conditions=conditions, fresh=tuple(content.pop("fresh")), **content)
        return Checkpoint(folder, int(trainer["global_step"]), list(trainer["log_history"]), state)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelStoreError(f"{folder.name} is not a checkpoint that can be resumed from: {exc}") from exc


def write_checkpoint(parent: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """A new folder for `step` under `parent`, filled by `fill`; it has its final name only when all of it is synced."""
    partial = parent / f".partial-{step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    sync_folder(partial)
    folder = _free_name(parent, step)
    partial.rename(folder)
    _sync(parent)
    return folder


def write_state(folder: Path, state: RunState) -> None:
    """Put `ondol-training.json` into `folder`."""
    content = {"format": _FORMAT, **asdict(state)}
    (folder / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def with_log_entry(checkpoint: Checkpoint, parent: Path, entry: dict[str, Any]) -> Checkpoint:
    """A copy of `checkpoint` under `parent` whose log has one entry more."""

    def fill(folder: Path) -> None:
        for source in sorted(checkpoint.folder.iterdir()):
            shutil.copyfile(source, folder / source.name)
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_FILE))
        state.log_history = [*checkpoint.log_history, entry]
        state.save_to_json(str(folder / TRAINER_STATE_FILE))

    return read_checkpoint(write_checkpoint(parent, checkpoint.step, fill))


def sync_folder(folder: Path) -> None:
    """Have the kernel write all of `folder` to disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _free_name(parent: Path, step: int) -> Path:
    """`checkpoint-N`; another attempt's folder of that step is left as it is."""
    folder, number = parent / f"checkpoint-{step}", 2
    while folder.exists():
        folder, number = parent / f"checkpoint-{step}-{number}", number + 1
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
