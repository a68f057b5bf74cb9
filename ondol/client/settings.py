"""Where the server is and which key to send: arguments, then the environment or `.env`, then a running `ondol up`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from ondol.contract.errors import InvalidPayload

DEFAULT_URL = "http://127.0.0.1:8400"
URL_FILE = Path("run/api.url")


class ClientSettings(BaseSettings):
    """What the client reads from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="ONDOL_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    url: str | None = Field(None, description="Address of the server, such as http://127.0.0.1:8400.")
    api_key: SecretStr | None = Field(None, description="API key sent as `Authorization: Bearer …`.")
    data_dir: Path = Field(
        Path("ondol-data"), description="Data folder of `ondol up`; its run/api.url names a server that runs here."
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address, without a trailing slash, and the key to send (or None)."""

    url: str
    api_key: str | None


def find_target(base_url: str | None = None, api_key: str | None = None) -> Target:
    """The server to talk to; what is not given is read from the environment. Reads files, sends nothing.

    InvalidPayload if the key cannot be one; white space around it is no part of it.
    """
    settings = ClientSettings()
    url = base_url or settings.url or _running_here(settings.data_dir) or DEFAULT_URL
    key = api_key if api_key is not None else settings.api_key and settings.api_key.get_secret_value()
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidPayload("the API key holds a character that no key has; copy it again", param="api_key")
    return Target(url.rstrip("/"), key or None)


def _running_here(data_dir: Path) -> str | None:
    try:
        return (data_dir / URL_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:  # nothing was started from this folder
        return None
