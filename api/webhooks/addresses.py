"""Where a receiver is: its name is resolved once a try, and judged by every address that it has."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ondol.contract.errors import InvalidPayload, NotReady
from ondol.contract.webhooks import WebhookTarget, is_reachable, resolved_address

_RESOLVER_THREADS = 4


class Resolver(Protocol):
    """Turns names into addresses."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """All addresses of the host, the best first; OSError if it has none or nobody knows."""
        ...

    def close(self) -> None:
        """Resolve no more."""
        ...


class SystemResolver:
    """The machine's own resolver, on threads of its own: a name that takes long holds up nothing but webhooks.

    Whoever asks for a name that is being looked up waits for that look: a name that hangs holds one thread, not all.
    """

    def __init__(self, look_up: Callable[[str, int], list[str]] | None = None) -> None:
        self._look_up = look_up or _look_up
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="webhook-names")
        self._looks: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """All addresses of the host, as getaddrinfo orders them; OSError."""
        key = (host, port)
        look = self._looks.get(key)
        if look is None:
            look = asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)
            self._looks[key] = look
            look.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(look)

    def close(self) -> None:
        """Let go of the threads; a look-up that hangs is left to itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, key: tuple[str, int], look: asyncio.Future[list[str]]) -> None:
        del self._looks[key]
        if not look.cancelled():
            look.exception()  # whoever asked may have stopped waiting for it


def _look_up(host: str, port: int) -> list[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def addresses_of(target: WebhookTarget, resolver: Resolver, networks: Sequence[str]) -> list[str]:
    """The addresses that a try may connect to, the best first.

    InvalidPayload if any address of the receiver may not be reached: one that is public today and private tomorrow, or
    both at once, is refused whole. NotReady if the name is not resolved.
    """
    if target.address is not None:
        found: Sequence[str] = [str(target.address)]
    else:
        try:
            found = await resolver.resolve(target.host, target.port)
        except (OSError, UnicodeError) as exc:  # UnicodeError: a label that the resolver's own coding refuses
            raise NotReady(f"the name {target.host} is not resolved") from exc
    if not found:
        raise NotReady(f"the name {target.host} has no address")
    for each in found:
        if not is_reachable(resolved_address(each), networks):
            raise InvalidPayload(f"{target.host} is at an address that is not public", param="webhook")
    return list(dict.fromkeys(found))
