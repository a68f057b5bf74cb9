"""What a check of `ondol doctor` finds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote

# Wider than what an address ought to be: drivers take passwords with `/`, `?` or `@` in them, too.
_PASSWORD = re.compile(r"[^:/?#]+://[^:/?#@]*:(?P<secret>[^@]*(?:@[^/?#@]*)*)@")
_SECRET_FIELD = re.compile(r"[?&;][^=&;]*(?:passw|pwd|secret|token|key)[^=&;]*=(?P<secret>[^&;#]+)", re.IGNORECASE)


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
    """The URL with `…` in the place of its password and of what its query calls a secret."""
    for start, end in sorted(_secret_spans(url), reverse=True):
        url = f"{url[:start]}…{url[end:]}"
    return url


def without_secrets_of(url: str, text: str) -> str:
    """A text about the URL, such as a driver's error, with `…` in the place of every secret of the URL."""
    secrets = {url[start:end] for start, end in _secret_spans(url)}
    text = text.replace(url, without_secret(url))
    for secret in sorted(secrets | {unquote(secret) for secret in secrets}, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def _secret_spans(url: str) -> list[tuple[int, int]]:
    """Where the secrets of the URL stand in it; none overlaps another."""
    password = _PASSWORD.match(url)
    spans = [] if password is None else [password.span("secret")]
    behind = spans[0][1] if spans else 0
    spans += [found.span("secret") for found in _SECRET_FIELD.finditer(url, behind)]
    return [(start, end) for start, end in spans if start < end]
