"""The best weights so far, kept on this machine by a hard link: whoever deletes the checkpoint's folder leaves them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from workers.training.child.checkpoints import Checkpoint, read_checkpoint
from workers.training.child.history import Evaluation, best_of, evaluations_in

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Best:
    """An evaluation and the folder of its weights; without validation rows, the newest checkpoint and no metrics."""

    evaluation: Evaluation
    folder: Path


class BestKeeper:
    """Follows the best step by `metric`, the earlier of equal ones."""

    def __init__(self, metric: str, folder: Path) -> None:
        self._metric = metric
        self._folder = folder
        self.best: Best | None = None

    def restore(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Find the best step so far, among those whose weights are in `checkpoints`; the newest comes first."""
        known = list(checkpoints)
        history = evaluations_in(known[0].log_history)
        folders = {checkpoint.step: checkpoint.folder for checkpoint in reversed(known)}
        best = best_of([evaluation for evaluation in history if evaluation.step in folders], self._metric)
        wanted = best_of(history, self._metric)
        if wanted is not None and (best is None or wanted.step != best.step):
            log.warning("training.best_lost", step=wanted.step, taken=None if best is None else best.step)
        if best is None:
            # Any evaluation beats this one; without validation rows, the newest weights are the best.
            best = Evaluation(known[0].step, {})
        self._keep(best, folders[best.step])

    def offer(self, evaluation: Evaluation, folder: Path) -> bool:
        """Take the checkpoint in `folder` if it is better than all before; whether it is."""
        if self.best is not None and self.best.evaluation.metrics:
            both = [self.best.evaluation, evaluation]
            if best_of(both, self._metric) is not evaluation:
                return False
        self._keep(evaluation, folder)
        return True

    def _keep(self, evaluation: Evaluation, folder: Path) -> None:
        kept = self._folder / f"best-{evaluation.step}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for source in folder.iterdir():
            if source.suffix in (".safetensors", ".json"):
                _link(source, kept / source.name)
        if self.best is not None and self.best.folder != kept:
            shutil.rmtree(self.best.folder)
        self.best = Best(evaluation, kept)


def known_checkpoints(resumed: Checkpoint, best_from: Path | None) -> list[Checkpoint]:
    """The checkpoint that is resumed, and that of the best step where it is another."""
    return [resumed] if best_from is None else [resumed, read_checkpoint(best_from)]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another filesystem, or one without hard links
        shutil.copyfile(source, target)
