"""What a check of `ondol doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found about `subject`, and the remedy if there is something to do."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def ok(subject: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(subject, Verdict.OK, found)


def note(subject: str, found: str, remedy: str) -> Finding:
    """It works; the remedy makes it better."""
    return Finding(subject, Verdict.NOTE, found, remedy)


def bad(subject: str, found: str, remedy: str) -> Finding:
    """It does not work without the remedy."""
    return Finding(subject, Verdict.BAD, found, remedy)


def without_secret(url: str) -> str:
    """The URL with `…` in the place of its password."""
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":…@") if parts.password else url
