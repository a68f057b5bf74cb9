"""A name is resolved once a try, judged by all its addresses, and connected to at exactly one of those."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Sequence

import pytest

from api.webhooks.addresses import MAX_OF_A_DOMAIN, SystemResolver
from api.webhooks.sender import Answer, Sender, Verdict
from ondol.contract.errors import Overloaded
from tests.webhooks.conftest import LOOPBACK
from tests.webhooks.receiver import receiving

pytestmark = pytest.mark.integration

PUBLIC = "93.184.216.34"
TIMEOUT_S = 10


class Names:
    """A resolver that knows what it is told, and counts how often it is asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.num_asked = 0
        self._answers = answers

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        assert host == "hook.test" and port > 0
        answer = self._answers[min(self.num_asked, len(self._answers) - 1)]
        self.num_asked += 1
        return answer

    def close(self) -> None:
        """Nothing is open."""


def post(
    names: Names | SystemResolver, url: str, *, networks: Sequence[str] = (), timeout_s: float = TIMEOUT_S
) -> Answer:
    async def send() -> Answer:
        sender = Sender(names, networks=networks, timeout_s=timeout_s)
        try:
            found = await sender.find(url)
            return found if isinstance(found, Answer) else await sender.post(found, {"webhook-id": "ntc_1"}, b"{}")
        finally:
            await sender.close()

    return asyncio.run(send())


@pytest.mark.parametrize(
    "found", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::1"], ["fe80::1%eth0"], ["::ffff:127.0.0.1"]]
)
def test_a_name_with_a_private_address_is_not_connected_to(found: list[str]) -> None:
    with receiving() as receiver:
        answer = post(Names(found), f"http://hook.test:{receiver.port}/")
        assert answer.verdict is Verdict.REFUSED
        assert answer.text == "not sent: hook.test is at an address that is not public"
        assert receiver.received == []


def test_a_name_that_moves_between_two_look_ups_gains_nothing() -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    with receiving() as receiver:
        answer = post(names, f"http://hook.test:{receiver.port}/x?y=1", networks=[LOOPBACK])
        assert (answer.verdict, names.num_asked) == (Verdict.ACCEPTED, 1)
        [got] = receiver.received
        assert (got.path, got.headers["host"]) == ("/x?y=1", f"hook.test:{receiver.port}")


def test_the_next_address_is_tried_where_the_first_refuses() -> None:
    with receiving() as receiver:  # nobody listens on 127.0.0.2
        answer = post(Names(["127.0.0.2", "127.0.0.1"]), f"http://hook.test:{receiver.port}/", networks=[LOOPBACK])
        assert answer.verdict is Verdict.ACCEPTED


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with receiving() as receiver:
        assert (
            post(Names(["127.0.0.1"]), f"http://hook.test:{receiver.port}/", networks=[LOOPBACK]).text
            == "204 No Content"
        )


def test_tls_is_spoken_to_the_name_and_not_to_the_address() -> None:
    hello: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            connection, _ = server.accept()
            with connection:
                hello.append(connection.recv(4096))

        thread = threading.Thread(target=take)
        thread.start()
        answer = post(Names(["127.0.0.1"]), f"https://hook.test:{server.getsockname()[1]}/", networks=[LOOPBACK])
        thread.join()
    assert b"hook.test" in hello[0]
    assert (answer.verdict, answer.is_silent) == (Verdict.REFUSED, True)


def test_a_name_that_hangs_keeps_no_other_from_being_resolved() -> None:
    is_over = threading.Event()

    def look_up(host: str, _port: int) -> list[str]:
        if host == "dead.test":
            assert is_over.wait(TIMEOUT_S)
        return [PUBLIC]

    async def ask() -> None:
        resolver = SystemResolver(look_up)
        try:
            hanging = [asyncio.create_task(resolver.resolve("dead.test", 443)) for _ in range(16)]
            await asyncio.sleep(0)
            assert await asyncio.wait_for(resolver.resolve("alive.test", 443), TIMEOUT_S / 2) == [PUBLIC]
            hanging[0].cancel()  # who stops waiting takes the look away from nobody
            is_over.set()
            assert await asyncio.gather(*hanging[1:]) == [[PUBLIC]] * 15
        finally:
            is_over.set()
            resolver.close()

    asyncio.run(ask())


@pytest.mark.parametrize("shared", ["test", "co.kr"])
def test_names_that_hang_hold_up_no_other_domain_and_few_of_their_own(shared: str) -> None:
    is_over, asked, lock = threading.Event(), Counter[str](), threading.Lock()

    def look_up(host: str, _port: int) -> list[str]:
        with lock:
            asked[host.split(".")[1]] += 1
        if "dead" in host:
            assert is_over.wait(60)
        return [PUBLIC]

    async def ask() -> None:
        resolver = SystemResolver(look_up)
        try:
            names = [f"n{i}.dead{i % 4}.{shared}" for i in range(40)]
            hanging = [asyncio.create_task(resolver.resolve(name, 443)) for name in names]
            await asyncio.sleep(0)
            assert await asyncio.wait_for(resolver.resolve(f"n.alive.{shared}", 443), TIMEOUT_S / 2) == [PUBLIC]
            found = await asyncio.gather(*(look for look in hanging[8:]), return_exceptions=True)
            assert all(isinstance(one, Overloaded) for one in found), "nobody came to look"
            assert all(asked[f"dead{i}"] == MAX_OF_A_DOMAIN for i in range(4)) and not any(
                look.done() for look in hanging[:8]
            )
            is_over.set()
            assert await asyncio.gather(*hanging[:8]) == [[PUBLIC]] * 8
        finally:
            is_over.set()
            resolver.close()

    asyncio.run(ask())


def test_a_look_that_has_not_begun_is_no_try() -> None:
    is_over = threading.Event()

    def look_up(_host: str, _port: int) -> list[str]:
        assert is_over.wait(60)
        return [PUBLIC]

    async def send() -> Answer:
        sender = Sender(SystemResolver(look_up), networks=(), timeout_s=4 * TIMEOUT_S)
        hanging = [asyncio.create_task(sender.find(f"http://n{i}.dead.test/")) for i in range(MAX_OF_A_DOMAIN)]
        try:
            await asyncio.sleep(0)
            answer = await sender.find("http://late.dead.test/")
            assert isinstance(answer, Answer)
            return answer
        finally:
            is_over.set()
            await asyncio.gather(*hanging)
            await sender.close()

    assert asyncio.run(send()).verdict is Verdict.UNTRIED


def test_the_machines_own_names_are_resolved() -> None:
    with receiving() as receiver:
        url = f"http://localhost:{receiver.port}/"
        assert post(SystemResolver(), url).text == "not sent: localhost is at an address that is not public"
        assert post(SystemResolver(), url, networks=[LOOPBACK, "::1/128"]).verdict is Verdict.ACCEPTED
