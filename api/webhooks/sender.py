"""One try of a delivery: resolve, connect to exactly what was resolved, POST, read the status."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from functools import cached_property
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from api.webhooks.addresses import Resolver, addresses_of
from ondol.contract.errors import InvalidPayload, NotReady, Overloaded
from ondol.contract.webhooks import WebhookTarget, parse_webhook

MAX_PAUSE_S = 3_600.0
USER_AGENT = "Ondol-Webhooks/1"
_GONE = 410
_MAX_ADDRESSES = 3


class Verdict(Enum):
    """What a receiver made of a delivery."""

    ACCEPTED = auto()
    REFUSED = auto()
    """Try again later."""
    GONE = auto()
    """Never again."""
    UNTRIED = auto()
    """Nobody came to ask it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a try ended; `text` is for people and holds nothing that the receiver wrote."""

    verdict: Verdict
    text: str
    retry_after_s: float | None = None
    is_silent: bool = False
    """No answer came at all."""


@dataclass(frozen=True, slots=True)
class Found:
    """A receiver, and the addresses at which one try may reach it, the best first."""

    target: WebhookTarget
    addresses: Sequence[str]


class Sender:
    """Sends deliveries. Nothing is shared between two: no connection, cookie or proxy."""

    def __init__(self, resolver: Resolver, *, networks: Sequence[str], timeout_s: float) -> None:
        self._resolver = resolver
        self._networks = tuple(networks)
        self._timeout_s = timeout_s

    async def find(self, url: str) -> Found | Answer:
        """Where the receiver is, or why nothing can be sent there, within the time limit of a try; raises neither."""
        try:
            async with asyncio.timeout(self._timeout_s):
                target = parse_webhook(url)
                return Found(target, await addresses_of(target, self._resolver, self._networks))
        except InvalidPayload as exc:
            return Answer(Verdict.REFUSED, f"not sent: {exc.message}")
        except Overloaded as exc:
            return Answer(Verdict.UNTRIED, exc.message)
        except NotReady as exc:
            return Answer(Verdict.REFUSED, exc.message, is_silent=True)
        except TimeoutError:
            return Answer(Verdict.REFUSED, f"no address within {self._timeout_s:g} s", is_silent=True)

    async def post(self, found: Found, headers: Mapping[str, str], body: bytes) -> Answer:
        """The receiver's answer, or why there is none, within the time limit of a try; never raises for a receiver."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post_to_any(found.target, found.addresses, headers, body)
        except (TimeoutError, httpx.TimeoutException):
            return Answer(Verdict.REFUSED, f"no answer within {self._timeout_s:g} s", is_silent=True)
        except httpx.HTTPError as exc:
            return Answer(Verdict.REFUSED, f"no answer: {type(exc).__name__}", is_silent=True)

    async def close(self) -> None:
        """Send no more."""
        self._resolver.close()
        if "_client" in self.__dict__:
            await self._client.aclose()

    async def _post_to_any(
        self, target: WebhookTarget, addresses: Sequence[str], headers: Mapping[str, str], body: bytes
    ) -> Answer:
        tried = addresses[:_MAX_ADDRESSES]
        for i, address in enumerate(tried, 1):
            connect_s = self._timeout_s / (len(tried) - i + 1)
            try:
                return await self._post(target, address, headers, body, connect_s=connect_s)
            except (httpx.ConnectError, httpx.ConnectTimeout):  # nothing was sent: the next address may be tried
                if i == len(tried):
                    raise
        raise AssertionError("a receiver has at least one address")

    async def _post(
        self, target: WebhookTarget, address: str, headers: Mapping[str, str], body: bytes, *, connect_s: float
    ) -> Answer:
        url = httpx.URL(scheme=target.scheme, host=address, port=target.port, raw_path=target.path.encode("ascii"))
        request = self._client.build_request(
            "POST",
            url,
            headers={**headers, "host": target.authority, "content-type": "application/json", "user-agent": USER_AGENT},
            content=body,
            timeout=httpx.Timeout(self._timeout_s, connect=connect_s),
            extensions={"sni_hostname": target.host} if target.address is None else None,
        )
        response = await self._client.send(request, stream=True)
        await response.aclose()  # what the receiver says beside the status is of no interest
        return _answer(response)

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        # A kept connection is known by its address only: the next receiver there might have another name.
        limits = httpx.Limits(max_keepalive_connections=0)
        # Nor are cookies known by more than the address; and a receiver must not fill our memory with them.
        none_kept = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        return httpx.AsyncClient(
            verify=_trusted(), trust_env=False, follow_redirects=False, limits=limits, cookies=none_kept
        )


def _trusted() -> ssl.SSLContext:
    """The well-known authorities, and those that this machine trusts beside them."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _answer(response: httpx.Response) -> Answer:
    status = response.status_code
    try:
        text = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        text = str(status)
    if 200 <= status < 300:
        return Answer(Verdict.ACCEPTED, text)
    if status == _GONE:
        return Answer(Verdict.GONE, text)
    return Answer(Verdict.REFUSED, text, _retry_after_s(response.headers.get("retry-after")))


def _retry_after_s(value: str | None) -> float | None:
    """Seconds that the receiver asks for, an hour at most; None if it asks for none that can be read."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_PAUSE_S)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), MAX_PAUSE_S)
