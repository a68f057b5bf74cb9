"""What the dashboard leaves in the data folder for others: its address, and the password that was made for it."""

from __future__ import annotations

import secrets
from pathlib import Path

from ondol.control.embedded_redis import write_secret
from ondol.settings import FlowerSettings

_PASSWORD_BYTES = 24


def url_file(run_dir: Path) -> Path:
    """Where the running dashboard says what its address is, without the password."""
    return run_dir / "flower.url"


def password_file(run_dir: Path) -> Path:
    """Where a password is kept that nobody chose."""
    return run_dir / "flower.password"


def dashboard_password(settings: FlowerSettings) -> str:
    """The password of the settings, else the one in its file, which is made at the first start."""
    if settings.flower_password is not None:
        return settings.flower_password.get_secret_value()
    path = password_file(settings.run_dir)
    kept = path.read_text(encoding="ascii").strip() if path.exists() else ""
    if kept:
        return kept
    made = secrets.token_urlsafe(_PASSWORD_BYTES)
    write_secret(path, made + "\n")
    return made


def where_the_password_is(settings: FlowerSettings) -> str:
    """Who may look, and where that person finds the password; never the password itself."""
    where = "as set" if settings.flower_password is not None else f"in {password_file(settings.run_dir)}"
    return f"user {settings.flower_user}, password {where}"
