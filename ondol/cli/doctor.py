"""`ondol doctor`: what this machine and its settings look like to Ondol, and what to do where that is not enough."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from ondol.cli import exits
from ondol.cli.checks import run_checks
from ondol.cli.findings import Finding, Verdict
from ondol.cli.options import AsJson
from ondol.cli.output import console, print_json, print_table

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BAD: "bold red"}


def doctor(
    show_settings: Annotated[bool, typer.Option("--settings", help="List every setting instead.")] = False,
    as_json: AsJson = False,
) -> int:
    """Check versions, settings, devices, disk, Redis, SQL, store, ports and server; exit code 1 if something is bad.

    Example: ondol doctor
    """
    if show_settings:
        _print_settings(as_json=as_json)
        return exits.DONE
    findings = run_checks()
    if as_json:
        print_json({"object": "list", "data": [asdict(finding) for finding in findings]})
    else:
        _print_findings(findings)
    return exits.JOB_FAILED if any(finding.verdict is Verdict.BAD for finding in findings) else exits.DONE


def _print_findings(findings: list[Finding]) -> None:
    out = console()
    for finding in findings:
        out.print(Text(f"{finding.verdict:<5}", _STYLES[finding.verdict]), f"{finding.subject:<9}{finding.found}")
        if finding.remedy:
            out.print(f"               -> {finding.remedy}")


def _print_settings(*, as_json: bool) -> None:
    from ondol.settings_table import describe_settings

    settings = describe_settings()
    if as_json:
        print_json({"object": "list", "data": [asdict(setting) for setting in settings]})
        return
    columns = ("SETTING", "DEFAULT", "UNIT", "RANGE", "READ BY", "MEANING")
    rows = [(s.name, s.default, s.unit, s.allowed, " ".join(s.processes), s.description) for s in settings]
    print_table(columns, rows)
