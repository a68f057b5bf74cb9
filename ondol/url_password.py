"""A password that came apart from its URL, put into it. No I/O."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import SecretStr


def with_password(url: str, password: SecretStr | None) -> str:
    """`url` with `password`, percent-encoded; unchanged if there is none, if it holds one already, or for SQLite."""
    if password is None or not password.get_secret_value() or url.startswith("sqlite"):
        return url
    parts = urlsplit(url)
    if parts.password:
        return url
    credentials, _, address = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    encoded = quote(password.get_secret_value(), safe="")
    return urlunsplit(parts._replace(netloc=f"{user}:{encoded}@{address}"))
