"""The figures of saved lines as Markdown, for the README: `python -m bench.table bench/results/*.json`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.report import Figure, Line, load, number


def main(argv: list[str]) -> int:
    """Print one table a line, and what the machine was."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    lines = []
    for file in parser.parse_args(argv).files:
        try:
            lines.append(load(file))
        except ValueError as exc:
            print(f"passed over: {exc}", file=sys.stderr)
    print("\n\n".join(render(line) for line in lines))
    return 0


def render(line: Line) -> str:
    """One line as a Markdown table."""
    machine = line.machine
    size = "" if line.settings.get("is_full") else ", quick run"
    parts = [
        f"**{line.title}** ({machine['num_cores']} cores, {machine['cpu']}; {machine['measured_at']}{size})",
        "",
        "| figure | median | lowest to highest | |",
        "|---|---|---|---|",
        *[_row(figure) for figure in line.figures],
        *[f"\nNot measured: {what}" for what in line.left_out],
    ]
    return "\n".join(parts)


def _row(figure: Figure) -> str:
    unit = {"ratio": "×", "": ""}.get(figure.unit, " " + figure.unit)
    spread = ""
    if len(figure.rounds) > 1:
        spread = f"{number(min(figure.rounds))} to {number(max(figure.rounds))} ({len(figure.rounds)} rounds)"
    return f"| {figure.name} | {number(figure.median)}{unit} | {spread} | {figure.note} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
