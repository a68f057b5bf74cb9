"""How values of settings are read and checked; ValueError says what is wrong and never repeats the value."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def at_least_an_hour(days: float) -> float:
    """`days` if it is none or an hour or more, else ValueError: whoever waits for an end must find what it left."""
    if 0 < days < 1 / 24:
        raise ValueError("an hour (0.042) or more, or 0 to keep for ever")
    return days


def url_of(url: str, *schemes: str) -> str:
    """`url` if it begins with one of the schemes, else ValueError, which does not repeat it: it may hold a password."""
    scheme, mark, _ = url.partition("://")
    if not mark or scheme not in schemes:
        raise ValueError("a URL begins with " + " or ".join(f"{one}://" for one in schemes))
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError("the URL's host or port cannot be read; write %40, %3A, %2F in a password") from None
    return url


def split_by_comma(value: object) -> object:
    """A comma-separated string as a list of its non-empty parts; anything else unchanged."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def is_loopback(host: str) -> bool:
    """Whether a bind address is reachable from this host only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
