"""docker-compose.yml as Compose reads it: anchors merged, variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Z][A-Z0-9_]*)(?::(?:-(?P<default>[^}]*)|\?(?P<refusal>[^}]*)))?\}|(?P<bad>.))"
)
_UNITS_S = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Service:
    """One service: what Compose would start, and when it would call it healthy."""

    name: str
    fields: Mapping[str, Any]

    @property
    def command(self) -> list[str]:
        """The argument list."""
        return list(self.fields["command"])

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the file gives it."""
        return dict(self.fields.get("environment", {}))

    @property
    def profiles(self) -> list[str]:
        """Profiles that start it; none: it is always started."""
        return list(self.fields.get("profiles", []))

    @property
    def health_command(self) -> list[str]:
        """The argument list of its health check."""
        kind, *arguments = self.fields["healthcheck"]["test"]
        assert kind in ("CMD", "CMD-SHELL"), self.name
        return arguments if kind == "CMD" else ["/bin/sh", "-c", *arguments]

    @property
    def health_pause_s(self) -> float:
        """Seconds between health checks as long as it starts."""
        return _seconds(self.fields["healthcheck"]["start_interval"])

    @property
    def stop_grace_s(self) -> float:
        """Seconds from SIGTERM to SIGKILL."""
        return _seconds(self.fields.get("stop_grace_period", "10s"))

    @property
    def needs(self) -> dict[str, str]:
        """What has to be so, by service, before this one is started."""
        return {name: needed["condition"] for name, needed in self.fields.get("depends_on", {}).items()}


def load_compose(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole file with these variables; ValueError names what Compose would not take."""
    loaded: dict[str, Any] = fill_in(yaml.safe_load(COMPOSE_FILE.read_text()), variables or {})
    check_specification(loaded)
    return loaded


def check_specification(loaded: Mapping[str, Any]) -> None:
    """ValueError where a file breaks the Compose specification."""
    PyCompose.from_json(json.dumps(loaded)).validate()


def load_services(variables: Mapping[str, str] | None = None) -> dict[str, Service]:
    """All services by name."""
    return {name: Service(name, fields) for name, fields in load_compose(variables)["services"].items()}


def fill_in(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with `${NAME:-default}`, `${NAME:?refusal}` and `$$` replaced in all of its strings."""
    if isinstance(value, dict):
        return {key: fill_in(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_in(item, variables) for item in value]
    return _VARIABLE.sub(lambda match: _replacement(match, variables), value) if isinstance(value, str) else value


def named_variables(text: str) -> set[str]:
    """Names of all variables in a text."""
    return {match["name"] for match in _VARIABLE.finditer(text) if match["name"]}


def _seconds(text: str) -> float:
    return float(text[:-1]) * _UNITS_S[text[-1]]


def _replacement(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    if match["bad"]:
        raise ValueError(f"Compose does not understand {match[0]!r}")
    if match["default"] is None and match["name"] not in variables:
        raise ValueError(match["refusal"] or f"{match['name']} has no default")
    return variables.get(match["name"]) or match["default"] or ""
