"""What a line of the suite answers: figures with their rounds, series for plots, and what was left out and why."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import describe

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: the median of its rounds is what is quoted. `unit` is `ratio`, `s`, `ms`, `/s`, …"""

    name: str
    unit: str
    rounds: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        """The quoted value."""
        return statistics.median(self.rounds)


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one curve of a plot; curves of one `plot` share its axes."""

    plot: str
    name: str
    x_label: str
    y_label: str
    points: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class Line:
    """One line of the suite. `settings` is how it was run; `left_out` says what was not measured, and why."""

    line: str
    title: str
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=describe)
    figures: list[Figure] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, unit: str, rounds: Sequence[float], note: str = "") -> None:
        """Add a figure and print it."""
        figure = Figure(name, unit, tuple(float(value) for value in rounds), note)
        self.figures.append(figure)
        print(as_text(figure), flush=True)

    def add_ratio(self, name: str, over: Sequence[float], under: Sequence[float], note: str = "") -> None:
        """Add `over` divided by `under`, round by round."""
        self.add(name, "ratio", [a / b for a, b in zip(over, under, strict=True)], note)

    def leave_out(self, what: str) -> None:
        """Say what was not measured, and why."""
        self.left_out.append(what)
        print(f"left out: {what}", flush=True)

    def save(self, folder: Path) -> Path:
        """Write `<line>.json`; the file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.line}.json"
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        return file


def load(file: Path) -> Line:
    """A saved line; ValueError if the file is not one."""
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or "line" not in data or "figures" not in data:
        raise ValueError(f"{file} is not a result of the benchmark suite")
    figures = [Figure(f["name"], f["unit"], tuple(f["rounds"]), f["note"]) for f in data.pop("figures")]
    series = [
        Series(s["plot"], s["name"], s["x_label"], s["y_label"], tuple((x, y) for x, y in s["points"]))
        for s in data.pop("series")
    ]
    return Line(**data, figures=figures, series=series)


def as_text(figure: Figure) -> str:
    """`name   median unit  (lowest to highest of n)   note`."""
    spread = ""
    if len(figure.rounds) > 1:
        low, high = number(min(figure.rounds)), number(max(figure.rounds))
        spread = f"({low} to {high}, {len(figure.rounds)} rounds)"
    unit = "" if figure.unit == "ratio" else figure.unit
    return f"{figure.name:56} {number(figure.median):>10} {unit:4} {spread:34} {figure.note}".rstrip()


def number(value: float) -> str:
    """Three significant digits, and no fewer than the whole number."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value - 1) < 0.01 and value != 1:
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return f"{value:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of a hundred are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Size:
    """How much a line measures."""

    is_full: bool
    rounds: int
    out: Path

    def pick(self, quick: int, full: int) -> int:
        """The one of two counts that this run is for."""
        return full if self.is_full else quick


def run_line(
    measure: Callable[[argparse.Namespace, Size], Line],
    *,
    name: str,
    about: str | None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """The command line of one line: parse, measure, save, draw. `options`: its own flags, as argparse takes them."""
    from bench.plots import draw

    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument("--full", action="store_true", help="the published sizes; default: a quick look")
    parser.add_argument("--rounds", type=int, help="default: 5 with --full, else 2")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file and the plots")
    for flag, given in (options or {}).items():
        parser.add_argument(flag, **given)
    parsed = parser.parse_args(sys.argv[1:])
    size = Size(parsed.full, parsed.rounds or (5 if parsed.full else 2), parsed.out)
    try:
        line = measure(parsed, size)
    except KeyboardInterrupt:
        raise SystemExit(f"bench.{name}: stopped") from None
    line.settings["is_full"] = size.is_full
    print(f"wrote {line.save(size.out)}")
    for file in draw(line, size.out):
        print(f"wrote {file}")
    return 0
