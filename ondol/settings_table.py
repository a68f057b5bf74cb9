"""All settings as a table for people: name, unit, default, range, and the processes that read it."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from ondol.settings import (
    PREFIX,
    ApiSettings,
    FlowerSettings,
    IntakeSettings,
    ReconcilerSettings,
    TrainerSettings,
    UpSettings,
    WorkerSettings,
    _Settings,
)

PROCESSES: dict[str, type[_Settings]] = {
    "api": ApiSettings,
    "worker": WorkerSettings,
    "trainer": TrainerSettings,
    "reconciler": ReconcilerSettings,
    "intake": IntakeSettings,
    "flower": FlowerSettings,
    "up": UpSettings,
}
_UNITS = {
    "s": "s",
    "mb": "MiB",
    "kb": "KiB",
    "gb": "GiB",
    "days": "days",
    "tokens": "tokens",
    "messages": "messages",
    "jobs": "jobs",
}


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One setting as `ondol doctor --settings` shows it; empty strings where there is no unit, default or range."""

    name: str
    unit: str
    default: str
    allowed: str
    description: str
    processes: tuple[str, ...]


def describe_settings() -> list[SettingDescription]:
    """Every setting once, sorted by name. Reads no environment."""
    fields: dict[str, FieldInfo] = {}
    readers: dict[str, list[str]] = {}
    for process, settings_class in PROCESSES.items():
        for name, field in settings_class.model_fields.items():
            fields.setdefault(name, field)
            readers.setdefault(name, []).append(process)
    described = [_describe(name, field, tuple(readers[name])) for name, field in fields.items()]
    return sorted(described, key=lambda setting: setting.name)


def _describe(name: str, field: FieldInfo, processes: tuple[str, ...]) -> SettingDescription:
    return SettingDescription(
        name=PREFIX + name.upper(),
        unit=_UNITS.get(name.rsplit("_", 1)[-1], "") if "_" in name else "",
        default=_default(field.default),
        allowed=_choices(field.annotation) or _range(_constraints(field)),
        description=field.description or "",
        processes=processes,
    )


def _default(value: object) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(annotation: Any) -> str:
    if annotation is bool:
        return "true, false"
    if get_origin(annotation) is Literal:
        return ", ".join(str(value) for value in get_args(annotation))
    return ""


def _constraints(field: FieldInfo) -> list[object]:
    found: list[object] = list(field.metadata)
    if get_origin(field.annotation) in (Union, types.UnionType):
        for part in get_args(field.annotation):
            found.extend(getattr(part, "__metadata__", ()))
    flat: list[object] = []
    for item in found:
        flat.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return flat


def _range(constraints: Iterable[object]) -> str:
    lows: dict[float, str] = {}
    highs: list[float] = []
    for item in constraints:
        if isinstance(item, annotated_types.Ge):
            lows[_number(item.ge)] = f"{_number(item.ge):g} or more"
        elif isinstance(item, annotated_types.Gt):
            lows[_number(item.gt)] = f"over {_number(item.gt):g}"
        elif isinstance(item, annotated_types.Le):
            highs.append(_number(item.le))
    parts = [lows[max(lows)]] if lows else []
    if highs:
        parts.append(f"at most {min(highs):,.10g}")
    return ", ".join(parts)


def _number(bound: object) -> float:
    assert isinstance(bound, int | float)  # every bounded setting is a number
    return float(bound)
