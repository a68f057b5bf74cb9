"""The database that the settings name, for the commands that open it directly."""

from __future__ import annotations

from pathlib import Path

from ondol.contract.errors import NotFound
from ondol.settings import CommonSettings, load_settings

_SQLITE = "sqlite:///"


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL, None for another database."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def existing_database_url() -> str:
    """The database's URL; NotFound if it is a SQLite file that is not there."""
    url = load_settings(CommonSettings).resolved_database_url()
    file = sqlite_file(url)
    if file is not None and not file.exists():
        raise NotFound(f"there is no database at {file} yet; start `ondol up` there, or set ONDOL_DATA_DIR")
    return url


def new_database_url() -> str:
    """The database's URL, with the folder of a SQLite file made if need be."""
    url = load_settings(CommonSettings).resolved_database_url()
    file = sqlite_file(url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds people's texts
    return url
