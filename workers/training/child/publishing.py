"""From the best weights to the canonical version folder, checked by loading it as its users will."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from ondol.contract.errors import OndolError
from ondol.contract.model_spec import ModelSpec
from workers.device.engine import ModelHandle, ProbeRequest
from workers.device.torch_engine import TorchEngine
from workers.importing.importer import import_model
from workers.training.child.base_model import saved_for_training
from workers.training.child.best import Best
from workers.training.child.card import write_card, write_records
from workers.training.child.checkpoints import sync_folder
from workers.training.child.history import Evaluation
from workers.training.child.preparing import Prepared
from workers.training.plan import TrainPlan, TrainReport

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_TOLERANCE = 1e-5
"""Between the logits of two loads of the same float32 weights; padding moves the last bits."""
_AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
_PROBE_MEMORY_BYTES = 1 << 50
_PROBE_BATCH_TOKENS = 4_096

log = structlog.get_logger(__name__)


class VersionUnusable(OndolError):
    """The folder that would be published does not answer as the trained model does."""

    code = "version_unusable"


@dataclass(frozen=True, slots=True)
class PublishedFolder:
    """The canonical folder and what is said of it."""

    folder: Path
    spec: ModelSpec
    dtype: dict[str, Any] | None
    files: list[str]


def make_version(prepared: Prepared, best: Best, history: Sequence[Evaluation]) -> PublishedFolder:
    """The version folder of the best weights under the plan's `work_dir`.

    VersionUnusable if plain transformers gets other logits from the folder; ModelRefused as an import.
    """
    plan, report = prepared.plan, prepared.report
    model = saved_for_training(
        best.folder, report.task, fresh=(), what=f"the checkpoint of step {best.evaluation.step}"
    )
    source, folder = _empty(plan.work_dir / "final"), _empty(plan.work_dir / "version")
    model.model.save_pretrained(source)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(plan.base.path / name, source / name)
    write_card(source, plan, report, best.evaluation)
    spec = import_model(source, folder, convert_bin=False)
    write_records(folder, plan, report, best.evaluation, history)
    _check_spec(spec, report)
    batch = prepared.collate(prepared.sample_rows)
    _check_logits(model.model, folder, report.task, prepared.samples, batch)
    sync_folder(folder)
    shutil.rmtree(source)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return PublishedFolder(folder, spec, _probe(plan, folder, prepared.device), files)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _check_spec(spec: ModelSpec, report: TrainReport) -> None:
    if spec.task != report.task or spec.missing_weights or (report.labels and list(spec.labels) != report.labels):
        raise VersionUnusable(
            f"the trained model reads back as {spec.task} with {len(spec.labels)} labels and "
            f"{len(spec.missing_weights)} missing weights; wanted were {report.task} with {len(report.labels)} labels"
        )


def _check_logits(
    trained: PreTrainedModel, folder: Path, task: str, samples: Sequence[str], batch: dict[str, torch.Tensor]
) -> None:
    """Compare what training would give with what a user of plain transformers gets from the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded = getattr(transformers, _AUTO_CLASSES[task]).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    encoded = tokenizer(list(samples), padding=True, truncation=True, max_length=_width(batch), return_tensors="pt")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        wanted = trained.eval()(**inputs).logits
        found = loaded.eval()(**{name: value for name, value in encoded.items() if name in inputs}).logits
    mask = batch["attention_mask"].bool()
    if task == "token-classification" and wanted.shape == found.shape:
        wanted, found = wanted[mask], found[mask]
    if wanted.shape != found.shape or not torch.allclose(wanted, found, atol=_TOLERANCE, rtol=_TOLERANCE):
        raise VersionUnusable(
            "transformers gets other logits from the version's folder than the trained model gives; nothing was "
            "published. The checkpoint is kept; this is a fault of the base's tokenizer files or of Ondol"
        )


def _width(batch: dict[str, torch.Tensor]) -> int:
    return int(batch["input_ids"].shape[1])


def _probe(plan: TrainPlan, folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The dtype that serving will take here; None where it cannot be found out, and each worker does for itself."""
    name = plan.output_ref_name or plan.options.output_name
    engine = TorchEngine(device, memory_bytes=_PROBE_MEMORY_BYTES, batch_tokens=_PROBE_BATCH_TOKENS)
    try:
        found = engine.probe(ProbeRequest(ModelHandle(key=name, ref=name, path=folder, dtype="float32")))
    except OndolError as exc:
        log.warning("training.probe_failed", error=exc.message)
        return None
    return {
        "device_kind": found.device_kind,
        "dtype": found.dtype,
        "fidelity": {dtype: asdict(fidelity) for dtype, fidelity in found.fidelity.items()},
        "is_packed": found.is_packed,
    }
