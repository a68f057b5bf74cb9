"""What a fine-tune has published, and how to use it."""

from __future__ import annotations

from typing import Any

from ondol.cli.output import print_text
from ondol.client.records import JobResult
from ondol.client.training_progress import metric_text
from ondol.contract.kinds import JobKind

_EXAMPLES: dict[str, str] = {
    JobKind.TEXT_CLASSIFICATION: 'ondol classify "a text" --model {ref}',
    JobKind.TOKEN_CLASSIFICATION: 'ondol tag "a text" --model {ref}',
}


def print_trained(result: JobResult) -> None:
    """The published version with its metrics, its alias and a command that uses it; or what the files are like."""
    for line in _lines(result):
        print_text(line)


def _lines(result: JobResult) -> list[str]:
    if result.model is None:
        return _validated(result.raw.get("report") or {})
    raw = result.raw
    alias: dict[str, Any] = raw.get("alias") or {}
    best = f" of step {raw['best_step']}" if raw.get("best_step") is not None else ""
    lines = [f"published {result.model}, with the weights{best}"]
    if result.metrics:
        said = (metric_text(name, value) for name, value in sorted(result.metrics.items()))
        lines.append(f"on the validation rows: {', '.join(said)}")
    ref = result.model
    if alias.get("is_moved"):
        ref = f"{result.model.partition(':')[0]}@{alias['name']}"
        lines.append(f"the alias {ref} points to it")
    elif alias:
        lines.append(f"the alias {alias['name']} was moved meanwhile, and still points to {alias.get('points_to')}")
    example = _EXAMPLES.get(raw.get("task") or "")
    return [*lines, f"use it: {example.format(ref=ref)}"] if example else lines


def _validated(report: dict[str, Any]) -> list[str]:
    labels = ", ".join(report.get("labels") or ())
    return [
        f"the files are good, and nothing was trained: {report.get('task')},"
        f" {report.get('num_train')} training and {report.get('num_validation')} validation rows",
        f"labels: {labels}",
        f"without --validate-only: {report.get('max_steps')} steps, the best chosen by {report.get('metric')}",
    ]
