"""Where a receiver is: its name is resolved once a try, and judged by every address that it has."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from api.threads import DaemonThreads
from ondol.contract.errors import InvalidPayload, NotReady, Overloaded
from ondol.contract.webhooks import WebhookTarget, is_reachable, resolved_address

RESOLVER_THREADS = 16
MAX_OF_A_DOMAIN = 2
MAX_LOOKS = 256
"""Names that are looked up or wait for that."""
BEGIN_S = 5.0
_SHARED = frozenset({"ac", "co", "com", "edu", "go", "gov", "ne", "net", "or", "org"})
"""Under a country's domain these are nobody's own: what lies below `co.kr` has nothing to do with each other."""


class Resolver(Protocol):
    """Turns names into addresses."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """All addresses of the host, the best first; OSError if nobody knows any, Overloaded if none can look."""
        ...

    def close(self) -> None:
        """Resolve no more."""
        ...


class SystemResolver:
    """The machine's own resolver, on threads of its own: a name that takes long holds up nothing but webhooks.

    Whoever asks for a name that is being looked up waits for that look. Of the names below one domain a few are looked
    up at a time: a domain whose name servers hang holds some threads, not all.
    """

    def __init__(self, look_up: Callable[[str, int], list[str]] | None = None) -> None:
        self._look_up = look_up or _look_up
        self._threads = DaemonThreads(RESOLVER_THREADS, "webhook-names")
        self._looks: dict[tuple[str, int], _Look] = {}
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """All addresses of the host, as getaddrinfo orders them; OSError.

        Overloaded if the look did not begin within `BEGIN_S`, for other names that take long.
        """
        key = (host, port)
        look = self._looks.get(key)
        if look is None:
            if len(self._looks) >= MAX_LOOKS:
                raise _too_many()
            look = self._looks[key] = _Look(self._run(key))
            look.task.add_done_callback(lambda done: self._forget(key, done))
        try:
            await asyncio.wait_for(asyncio.shield(look.has_begun), BEGIN_S)
        except TimeoutError as exc:
            raise _too_many() from exc
        return await asyncio.shield(look.task)

    def close(self) -> None:
        """Let go of the threads; a look-up that hangs is left to itself."""
        for look in self._looks.values():
            look.task.cancel()
        self._threads.shutdown(cancel_futures=True)

    async def _run(self, key: tuple[str, int]) -> list[str]:
        domain = _domain_of(key[0])
        turns = self._domains.get(domain)
        if turns is None:
            turns = self._domains[domain] = asyncio.Semaphore(MAX_OF_A_DOMAIN)
        loop, has_begun = asyncio.get_running_loop(), self._looks[key].has_begun

        def look_up() -> list[str]:
            loop.call_soon_threadsafe(_settle, has_begun)
            return self._look_up(*key)

        async with turns:
            return await loop.run_in_executor(self._threads, look_up)

    def _forget(self, key: tuple[str, int], task: asyncio.Task[list[str]]) -> None:
        _settle(self._looks.pop(key).has_begun)
        if not task.cancelled():
            task.exception()  # whoever asked may have stopped waiting for it


class _Look:
    """A look for a name: under way, or waiting for its turn."""

    def __init__(self, work: Coroutine[None, None, list[str]]) -> None:
        self.has_begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(work, name="webhook-name")


def _domain_of(host: str) -> str:
    """The part of a name that one owner's name servers answer for, as far as that shows."""
    labels = host.rstrip(".").split(".")
    is_shared = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SHARED
    return ".".join(labels[-3 if is_shared else -2 :])


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _too_many() -> Overloaded:
    return Overloaded("other receivers' names take too long to be looked up", retry_after_s=BEGIN_S)


def _look_up(host: str, port: int) -> list[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def addresses_of(target: WebhookTarget, resolver: Resolver, networks: Sequence[str]) -> list[str]:
    """The addresses that a try may connect to, the best first.

    InvalidPayload if any address of the receiver may not be reached: one that is public today and private tomorrow, or
    both at once, is refused whole. NotReady if the name is not resolved, Overloaded if nobody has come to look yet.
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
