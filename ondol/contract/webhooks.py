"""Which URLs may be told of a job's end: http or https, without credentials, on a public address or an allowed network.

A URL is read here and nowhere else: what was checked is what is connected to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ondol.contract.errors import InvalidPayload

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_PORT = 65_535
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(?i)(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?")
_SENDABLE = re.compile(r"[!-~]+")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_MAX_HOST_CHARS = 253

# The special-purpose registries, written out: what the standard library calls private changes with its patch level.
_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """A checked URL in pieces: `host` is a lower-case name, or an address as `address` has it."""

    scheme: str
    host: str
    port: int
    path: str
    """Path and query, as sent."""
    address: Address | None

    @property
    def authority(self) -> str:
        """What the Host header says."""
        name = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"


def check_webhook(url: str, networks: Sequence[str] = ()) -> WebhookTarget:
    """The URL in pieces; InvalidPayload if nobody may be told there. A name is judged once it is resolved.

    `networks` are those beside the public ones that may be reached, as in 10.0.0.0/8.
    """
    target = parse_webhook(url)
    address = target.address
    if address is None and (target.host == "localhost" or target.host.endswith(".localhost")):
        address = IPv4Address("127.0.0.1")
    if address is not None and not is_reachable(address, networks):
        raise _refused(
            f"{target.host} is not a public address; an administrator may allow its network with ONDOL_WEBHOOK_NETWORKS"
        )
    return target


def parse_webhook(url: str) -> WebhookTarget:
    """The URL in pieces; InvalidPayload unless it is http or https, plain ASCII, without credentials."""
    if _SENDABLE.fullmatch(url) is None or "\\" in url:
        raise _refused("a URL has no spaces, backslashes, control or non-ASCII characters; encode them")
    match = _URL.fullmatch(url)
    if match is None:
        raise _refused("give a URL that begins with https:// or http://")
    scheme, authority, path, query = match[1].lower(), match[2], match[3], match[4] or ""
    if "@" in authority:
        raise _refused("a URL with a user name or password is not taken; every delivery is signed instead")
    named = _AUTHORITY.fullmatch(authority)
    if named is None:
        raise _refused("the URL has no valid host")
    port = int(named[2]) if named[2] else _PORTS[scheme]
    if not 1 <= port <= MAX_PORT:
        raise _refused(f"{port} is not a port")
    host, address = _host(named[1])
    return WebhookTarget(scheme, host, port, (path or "/") + query, address)


def is_reachable(address: Address, networks: Sequence[str] = ()) -> bool:
    """Whether a webhook may go to the address: it is public, or in one of the networks.

    An IPv6 address that stands for an IPv4 one (mapped, 6to4, NAT64) is judged as that one.
    """
    judged = _meant(address)
    allowed = _parsed(tuple(networks))
    return any(judged in network or address in network for network in allowed) or _is_public(judged)


@lru_cache(maxsize=8)
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(network) for network in networks)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def _meant(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    embedded = address.ipv4_mapped or address.sixtofour
    if embedded is None and address in _NAT64:
        embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
    return address if embedded is None else embedded


def _host(text: str) -> tuple[str, Address | None]:
    """The host as it is to be sent, and the address that it spells, in whatever way."""
    if text.startswith("["):
        try:
            address: Address = IPv6Address(text[1:-1])
        except AddressValueError as exc:
            raise _refused(f"{text[:80]} is not an IPv6 address") from exc
        return str(address), address
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if not name or len(name) > _MAX_HOST_CHARS or not all(1 <= len(label) <= 63 for label in labels):
        raise _refused(f"{text[:80]!r} is not a host name")
    if _NUMBER.fullmatch(labels[-1]):
        spelled = _spelled_address(labels)
        return str(spelled), spelled
    return name, None


def _spelled_address(labels: Sequence[str]) -> IPv4Address:
    """The IPv4 address that resolvers read in one to four decimal, octal or hexadecimal numbers."""
    numbers = [_number(label) for label in labels]
    *leading, last = numbers
    if len(numbers) > 4 or any(number > 255 for number in leading) or last >= 256 ** (5 - len(numbers)):
        raise _refused(f"{'.'.join(labels)[:80]} is not an IPv4 address")
    value = last + sum(number << 8 * (3 - i) for i, number in enumerate(leading))
    return IPv4Address(value)


def _number(label: str) -> int:
    if _NUMBER.fullmatch(label) is None:
        raise _refused(f"{label[:80]!r} is not part of an IPv4 address")
    if label[:2] in ("0x", "0X"):
        return int(label[2:] or "0", 16)
    if len(label) > 1 and label.startswith("0"):
        if not set(label) <= set("01234567"):
            raise _refused(f"{label[:80]!r} is not an octal number")
        return int(label, 8)
    return int(label)


def resolved_address(text: str) -> Address:
    """An address as resolvers write it, without the zone of a link-local one."""
    return ip_address(text.partition("%")[0])


def _refused(reason: str) -> InvalidPayload:
    return InvalidPayload(f"webhook: {reason}", param="webhook")
