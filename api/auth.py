"""Who is asking: API keys from the Authorization header, looked up in SQL and remembered for seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from api.database import AsyncDatabase
from api.timed_cache import TimedCache
from ondol.contract.errors import NotAuthenticated, NotPermitted
from ondol.setting_values import is_loopback
from ondol.sql.keys import DEFAULT_PROJECT
from ondol.sql.records import KeyRecord
from ondol.sql.unit_of_work import UnitOfWork

KEY_MAX_AGE_S = 3.0
_MAX_KEY_CHARS = 512
_AUTHORITY = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d*)?")


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs; it sees and makes things of this project alone."""

    project_id: str
    project: str
    is_admin: bool

    def require_admin(self, what: str) -> None:
        """Return if this is an administrator, else NotPermitted."""
        if not self.is_admin:
            raise NotPermitted(f"{what} needs an administrator's key (`ondol keys create --admin`)")


class Authenticator:
    """Turns an Authorization header into a caller. A revoked key is believed for `KEY_MAX_AGE_S` at most."""

    def __init__(self, database: AsyncDatabase, mode: Literal["keys", "off"]) -> None:
        self._database = database
        self._mode = mode
        self._keys: TimedCache[str, KeyRecord | None] = TimedCache(self._find, max_age_s=KEY_MAX_AGE_S)
        self._everybody: Caller | None = None

    async def caller(self, authorization: str | None, *, host: str | None = None, origin: str | None = None) -> Caller:
        """The caller; NotAuthenticated without a valid `Bearer` key.

        Without authentication everybody, but NotPermitted where a browser asks for a page that is not of this machine:
        `host` and `origin` are the headers, None where they are missing.
        """
        if self._mode == "off":
            _check_is_of_this_machine(host, origin)
            return await self._anybody()
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret or len(secret) > _MAX_KEY_CHARS:
            raise NotAuthenticated("send an API key: `Authorization: Bearer ondol_…` (`ondol keys create` makes one)")
        key = await self._keys.get(secret)
        if key is None:
            raise NotAuthenticated("this API key is not valid; it may have been revoked")
        return Caller(key.project_id, key.project, key.is_admin)

    async def _anybody(self) -> Caller:
        if self._everybody is None:
            project_id = await self._database.read(lambda uow: uow.keys.project_id())
            if project_id is None:
                project_id = await self._database.write(_ensure_default)
            self._everybody = Caller(project_id, DEFAULT_PROJECT, is_admin=True)
        return self._everybody

    async def _find(self, secret: str) -> KeyRecord | None:
        return await self._database.read(lambda uow: uow.keys.find(secret))


def _ensure_default(uow: UnitOfWork) -> str:
    return uow.keys.ensure_project()


def _check_is_of_this_machine(host: str | None, origin: str | None) -> None:
    """Return unless a web page from elsewhere asks, by a name of its own that leads here or straight from its address.

    Browsers send both headers by themselves, and pages cannot change them. What sends none is no browser.
    """
    if (host is None or _is_local(host)) and (origin is None or _is_local(_authority_of(origin))):
        return
    raise NotPermitted(
        "without API keys only this machine's own addresses are answered: use 127.0.0.1 or localhost,"
        " or make a key (`ondol keys create`) and start the server again"
    )


def _is_local(authority: str) -> bool:
    """Whether a host, with or without a port, is this machine whatever a name server says."""
    parts = _AUTHORITY.fullmatch(authority.strip().lower())
    if parts is None:
        return False
    host = (parts[1] or parts[2]).removesuffix(".")
    return host.endswith(".localhost") or is_loopback(host)


def _authority_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
