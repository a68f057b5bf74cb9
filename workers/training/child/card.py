"""The model card, and the JSON files that say how a version came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.training.child.history import Evaluation
from workers.training.plan import TrainPlan, TrainReport, report_as_dict

CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
TRAINING_FILE = "training.json"
_SHOWN_LABELS = 40
_AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}


def write_card(folder: Path, plan: TrainPlan, report: TrainReport, best: Evaluation) -> None:
    """Write `README.md` into `folder`."""
    options = plan.options
    name = plan.output_ref_name or options.output_name
    shown = ", ".join(report.labels[:_SHOWN_LABELS]) + (" …" if len(report.labels) > _SHOWN_LABELS else "")
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {report.task}",
        f"base_model: {json.dumps(plan.base.ref)}",
        "---",
        f"# {name}",
        "",
        f"{plan.base.ref}, fine-tuned for {report.task} by the job `{plan.job_id}`.",
        "",
        f"- Labels ({len(report.labels)}): {shown or 'none'}",
        f"- Data: {_file_name(plan.files.train.filename)}, {report.num_train:,} training rows, "
        f"{report.num_validation:,} validation rows",
        f"- Texts are cut to {report.max_length} tokens while training",
        f"- Backbone: {options.backbone}, learning rate {report.learning_rate:g}, "
        f"batch size {options.hyperparameters.per_device_train_batch_size}, seed {options.seed}",
        f"- Weights of step {best.step} of {report.max_steps}, the best by {report.metric} on the validation rows"
        if best.metrics
        else f"- Weights of step {best.step} of {report.max_steps}; there were no validation rows",
        "",
        *_metrics_table(best.metrics),
        "## Loading it",
        "",
        "```python",
        f"from transformers import AutoTokenizer, {_AUTO_CLASSES[report.task]}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {_AUTO_CLASSES[report.task]}.from_pretrained("FOLDER")',
        "```",
    ]
    (folder / CARD_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_records(
    folder: Path, plan: TrainPlan, report: TrainReport, best: Evaluation, history: Sequence[Evaluation]
) -> None:
    """Write `metrics.json` (the best step and every evaluation) and `training.json` (what was asked, and from what)."""
    evaluations = [{"step": evaluation.step, "metrics": evaluation.metrics} for evaluation in history]
    _write(
        folder / METRICS_FILE,
        {"metric": report.metric, "best_step": best.step, "metrics": best.metrics, "evaluations": evaluations},
    )
    content = {
        "job_id": plan.job_id,
        "base": plan.base.ref,
        "options": plan.options.model_dump(mode="json"),
        "resolved": report_as_dict(report),
        "lineage": plan.lineage,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    _write(folder / TRAINING_FILE, content)


def _metrics_table(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return []
    return ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in metrics.items()), ""]


def _file_name(name: str) -> str:
    """A name that a user chose, on one line and without marks of its own."""
    return "".join(char if char.isprintable() and char not in "`|<>*[]" else "_" for char in name)[:120]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
