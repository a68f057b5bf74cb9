"""Names of a head's classes: those of `config.json`, wherever in it they stand; `LABEL_n` only when none are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_GENERIC = re.compile(r"LABEL_\d+")


def complete_label_names(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with `id2label` from its `label2id` where only that has names; transformers reads `id2label` alone."""
    names = _names_by_id(config.get("label2id"))
    stated = config.get("id2label")
    if names is None or (stated is not None and not _is_generic(stated, len(names))):
        return config
    return config | {"id2label": {str(i): name for i, name in enumerate(names)}}


def read_label_names(id2label: Mapping[Any, str], *, warnings: list[str]) -> tuple[str, ...]:
    """One name for each of the head's classes, in the order of their ids; warns where the folder names none."""
    num_labels = len(id2label)
    known = {int(i): str(name) for i, name in id2label.items()}
    if sorted(known) != list(range(num_labels)):
        warnings.append(f"id2label in config.json does not number its {num_labels} labels from 0; it is not used")
        return tuple(f"LABEL_{i}" for i in range(num_labels))
    labels = tuple(known[i] for i in range(num_labels))
    if num_labels > 1 and all(map(_GENERIC.fullmatch, labels)):
        warnings.append(
            f"config.json does not name the {num_labels} labels, so answers say LABEL_0 and so on; "
            "set id2label in it and import again"
        )
    return labels


def _names_by_id(label2id: object) -> list[str] | None:
    """The names in order of their ids, if those are 0, 1, 2 … and the names mean something."""
    if not isinstance(label2id, dict) or not label2id:
        return None
    by_id = {i: name for name, i in label2id.items() if type(i) is int}
    if sorted(by_id) != list(range(len(label2id))) or any(map(_GENERIC.fullmatch, by_id.values())):
        return None
    return [by_id[i] for i in range(len(by_id))]


def _is_generic(id2label: object, num_labels: int) -> bool:
    if not isinstance(id2label, dict) or len(id2label) != num_labels:
        return False
    return all(_GENERIC.fullmatch(str(name)) for name in id2label.values())
