"""`ondol demo`: runs the demo and prints what it found."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from ondol.cli.options import AsJson
from ondol.cli.output import print_json, print_table

if TYPE_CHECKING:
    from ondol.demo.run import DemoReport

_LANGUAGES = {"en": "English", "ko": "Korean"}


def demo(as_json: AsJson = False) -> None:
    """Start an embedded stack on a temporary folder, run one job of each kind on real text, print the results, stop it.

    Example: ondol demo
    """
    from ondol.demo.run import run_demo

    report = run_demo(_say)
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)


def _say(line: str) -> None:
    print(f"- {line}", file=sys.stderr, flush=True)


def _print_report(report: DemoReport) -> None:
    print("\nSentence similarity: 375 pairs a language, embedded as jobs; Spearman of cosine with human scores\n")
    columns = ("JOB", "MODEL", "TEXT", "TEXTS", "TOKENS", "SECONDS", "TEXTS/S", "SPEARMAN")
    print_table(
        columns,
        [
            (
                run.job_id,
                run.model,
                _LANGUAGES[run.language],
                run.num_texts,
                run.num_tokens,
                f"{run.seconds:.2f}",
                f"{run.texts_per_s:.0f}",
                f"{run.correlation:.3f}",
            )
            for run in report.runs
        ],
    )
    print("\nNearest question: new questions, answered from 1,000 stored ones\n")
    headings = ("ASKED", "NEAREST STORED QUESTION", "ITS ANSWER", "COSINE")
    print_table(headings, [(m.question, m.nearest, m.answer, f"{m.score:.3f}") for m in report.matches])
    _print_entities(report)
    _print_loop(report)
    print(f"\nEverything is stopped and removed. {report.seconds:.0f} s in all.")


def _print_entities(report: DemoReport) -> None:
    print("\nEntities: personal data found by a token classifier\n")
    rows = [(e.sentence, e.label, e.text, f"{e.score:.3f}") for e in report.entities]
    print_table(("SENTENCE", "ENTITY", "TEXT", "SCORE"), rows)


def _print_loop(report: DemoReport) -> None:
    run = report.loop
    print(
        f"\nFine-tune, publish, serve: {run.num_train:,} questions of bank customers, {run.num_labels} intents, "
        f"{run.num_test} questions to classify\n"
    )
    print_table(
        ("JOB", "PUBLISHED", "TRAINED IN", "FIRST ANSWER AFTER", "TEXTS/S"),
        [(run.job_id, run.model, f"{run.training_s:.0f} s", f"{run.first_answer_s:.2f} s", f"{run.texts_per_s:.0f}")],
    )
    print()
    print_table(
        ("ACCURACY OF", "VALUE"),
        [
            ("the most frequent intent", f"{run.majority_accuracy:.3f}"),
            ("the nearest centroid of the base's vectors", f"{run.centroid_accuracy:.3f}"),
            (f"{run.model}, fine-tuned", f"{run.accuracy:.3f}"),
        ],
    )
