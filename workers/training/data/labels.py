"""The labels of a training: which there are, in which order, and whether they can be learnt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ondol.contract.errors import InvalidPayload
from workers.training.data.entities import OUTSIDE
from workers.training.data.examples import REGRESSION, SINGLE_LABEL, Examples, TextRows, TokenRows
from workers.training.data.problems import CellProblem, Problems, file_error, listed, shown

_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d*\.?\d+", re.ASCII)
_TAG = re.compile(r"O|[BIESLUM]-.+", re.DOTALL)
_MANY_NUMBERS = 10


def label_names(rows: Examples, base_labels: Sequence[str]) -> list[str]:
    """The labels of the training rows by id; for regression the name of the label column alone.

    Numeric order if all are integers, else code points (so `B-x` < `I-x` < `O`); an equal set in the base keeps the
    base's order. Tags made from entities have both `B-x` and `I-x` of each type, whether or not a row has them.
    InvalidPayload where there is nothing to tell apart.
    """
    if isinstance(rows, TextRows) and rows.problem_type == REGRESSION:
        _check_scores(rows)
        return [rows.columns.get("label", "score")]
    names = {name for labels in _sets(rows) for name in labels}
    _check_classes(rows, names)
    if isinstance(rows, TokenRows) and rows.has_entities:
        types = {name[2:] for name in names if name != OUTSIDE}
        names = {OUTSIDE} | {f"{prefix}-{kind}" for kind in types for prefix in "BI"}
    if len(base_labels) == len(names) and set(base_labels) == names:
        return list(base_labels)
    return in_order(names)


def in_order(names: Iterable[str]) -> list[str]:
    """Numeric order if all are integers (equal numbers by code points: 007 before 7), else code points."""
    names = sorted(names)
    if all(_INTEGER.fullmatch(name) for name in names):
        names.sort(key=int)
    return names


def check_known(rows: Examples, labels: list[str], *, train_filename: str) -> None:
    """InvalidPayload that names the first rows of the validation file with a label that no training row has."""
    known = set(labels)
    problems = Problems(rows.source)
    column = rows.columns.get("label") or rows.columns.get("tags") or rows.columns.get("entities", "messages")
    for number, names in enumerate(_sets(rows), start=1):
        unknown = [name for name in names if name not in known]
        if unknown:
            message = (
                f"label {shown(unknown[0])} is not in {train_filename}; add rows of it there, or correct or remove "
                "this row"
            )
            problems.add(number, None, CellProblem(message, column=column))
    problems.raise_if_any()


def count_labels(rows: Examples, indices: Iterable[int], labels: list[str]) -> dict[str, int]:
    """Rows by label, or tokens by tag, of the rows at `indices`; empty for regression."""
    if isinstance(rows, TextRows) and rows.problem_type == REGRESSION:
        return {}
    found: Counter[str] = Counter()
    per_row: Sequence[Sequence[str]] = rows.tags if isinstance(rows, TokenRows) else rows.labels
    for index in indices:
        found.update(per_row[index])
    return {name: found[name] for name in labels}


def label_warnings(rows: Examples, labels: list[str]) -> list[str]:
    """What looks like a slip in the labels."""
    if isinstance(rows, TextRows) and rows.problem_type == REGRESSION:
        return []
    alike: dict[str, list[str]] = {}
    for name in labels:
        alike.setdefault(name.strip().casefold(), []).append(name)
    found = [
        f"labels {listed(names)} differ only in case or in spaces around them; are they meant to be one?"
        for names in alike.values()
        if len(names) > 1
    ]
    if isinstance(rows, TokenRows):
        strange = [name for name in labels if not _TAG.fullmatch(name)]
        if strange:
            advice = "f1 counts spans of BIO tags; for tags of single words choose metric_for_best_model accuracy"
            found.append(f"tags {listed(strange)} are not BIO; {advice}")
    elif rows.problem_type == SINGLE_LABEL and len(labels) > _MANY_NUMBERS and _are_decimals(labels):
        advice = "to predict numbers, set problem_type to regression"
        found.append(f"labels are {len(labels):,} different decimal numbers, and each is trained as a class; {advice}")
    return found


def _sets(rows: Examples) -> list[tuple[str, ...]]:
    return rows.label_sets()


def _are_decimals(labels: list[str]) -> bool:
    return all(_NUMBER.fullmatch(name) for name in labels) and any("." in name for name in labels)


def _check_scores(rows: TextRows) -> None:
    if len(set(rows.scores)) == 1:
        advice = "there is nothing to learn; is this the label column?"
        raise file_error(rows.source, f"has the number {rows.scores[0]:g} in every row; {advice}")


def _check_classes(rows: Examples, names: set[str]) -> None:
    if isinstance(rows, TokenRows):
        if names <= {OUTSIDE} or len(names) < 2:
            only = listed(sorted(names))
            raise file_error(rows.source, f"has one tag only, {only}; there is nothing to learn: add rows with others")
    elif not names:
        raise file_error(rows.source, "has no label in any row; there is nothing to learn")
    elif rows.problem_type == SINGLE_LABEL and len(names) < 2:
        message = f"has one class only, {listed(sorted(names))}; add rows of another, or name the right label column"
        raise file_error(rows.source, message)


def check_weights(names: Iterable[str], labels: list[str]) -> None:
    """InvalidPayload for a class weight whose label the training rows do not have."""
    unknown = sorted(set(names) - set(labels))
    if unknown:
        message = f"class_weights names {listed(unknown)}, which no training row has; the labels are {listed(labels)}"
        raise InvalidPayload(message, param="options.class_weights")
