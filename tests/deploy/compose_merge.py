"""Several compose files as Compose reads them together: `extends`, `!override`, and later files over earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.compose_file import check_specification, fill_in

_OVERRIDE = "!override"
_REPLACED = ("command", "entrypoint", "test")
"""Lists that a later file replaces; all others are appended to."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml is untyped
    """YAML with Compose's tag; what it marks becomes a mapping with that one key, until it is merged."""


def _override(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    construct = loader.construct_sequence if isinstance(node, yaml.SequenceNode) else loader.construct_mapping
    return {_OVERRIDE: construct(node, deep=True)}


_Loader.add_constructor(_OVERRIDE, _override)


def load_files(folder: Path, names: Sequence[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `docker compose -f … -f …` sees; ValueError where Compose would refuse it."""
    whole: dict[str, Any] = {}
    for name in names:
        whole = merge(whole, _load(folder, name, variables or {}))
    check_specification(whole)
    return whole


def merge(base: Any, over: Any, key: str = "") -> Any:
    """`over` on top of `base`: mappings by key, lists one after the other without repeats, anything else replaced."""
    if isinstance(over, dict) and _OVERRIDE in over:
        return over[_OVERRIDE]
    if isinstance(over, dict):
        below = base if isinstance(base, dict) else {}
        return {**below, **{name: merge(below.get(name), value, name) for name, value in over.items()}}
    if isinstance(over, list) and isinstance(base, list) and key not in _REPLACED:
        added = [item for item in over if item not in base]
        return _by_target([*base, *added]) if key == "volumes" else [*base, *added]
    return over


def _load(folder: Path, name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    text = (folder / name).read_text(encoding="utf-8")
    loaded: dict[str, Any] = fill_in(yaml.load(text, _Loader), variables)
    for service, fields in loaded.get("services", {}).items():
        if "extends" in fields:
            source = fields.pop("extends")
            base = _load(folder, source["file"], variables)["services"][source["service"]]
            loaded["services"][service] = merge(base, fields)
    return loaded


def _by_target(volumes: list[str]) -> list[str]:
    return list({text.split(":")[1]: text for text in volumes}.values())
