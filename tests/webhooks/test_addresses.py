"""No URL leads to a private address, however it is spelled, unless its network is allowed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondol.contract.errors import InvalidPayload
from ondol.contract.jobs import InputLimits, parse_job
from ondol.contract.webhooks import check_webhook, is_reachable

pytestmark = pytest.mark.unit

PRIVATE = (
    "http://127.0.0.1/hook",
    "http://127.1/",
    "http://2130706433",
    "http://0x7f.0.0.1:8080/",
    "http://0x7f000001",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.0.0.1./",
    "http://0/",
    "http://0.0.0.0/",
    "https://10.1.2.3/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://172.31.255.255/",
    "https://192.168.0.1/",
    "https://192.0.2.1/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://[64:ff9b:1::1]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://localhost/",
    "http://LOCALHOST.:8400/",
    "http://a.localhost/",
)
MALFORMED = (
    "ftp://example.org/",
    "file:///etc/passwd",
    "//example.org/",
    "https://",
    "https:///hook",
    "https://user:secret@example.org/",
    "https://example.org@127.0.0.1/",
    "https://example.org\\@127.0.0.1/",
    "https://exa mple.org/",
    "https://example.org/\r\nx: y",
    "https://bücher.example/",
    "https://①②⑦.0.0.1/",
    "https://example.org:0/",
    "https://example.org:65536/",
    "https://example..org/",
    "https://[::1",
    "https://[fe80::1%25eth0]/",
    "https://1.2.3.4.5/",
    "https://256.0.0.1/",
    "https://09.0.0.1/",
    "https://example.1/",
    "https://%31%32%37.0.0.1/",
)
PUBLIC = (
    ("https://example.org/hook?token=1#part", "example.org", 443, "/hook?token=1"),
    ("HTTP://Example.ORG.", "example.org", 80, "/"),
    ("https://93.184.216.34:8443/", "93.184.216.34", 8443, "/"),
    ("https://[2606:4700::1111]/x", "2606:4700::1111", 443, "/x"),
    ("https://[64:ff9b::8.8.8.8]/", "64:ff9b::808:808", 443, "/"),
    ("https://my_service.internal-net.example?x", "my_service.internal-net.example", 443, "/?x"),
)


@pytest.mark.parametrize("url", PRIVATE + MALFORMED)
def test_what_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        check_webhook(url)
    assert refused.value.param == "webhook"


@pytest.mark.parametrize(("url", "host", "port", "path"), PUBLIC)
def test_a_public_url_is_read_as_it_is_sent(url: str, host: str, port: int, path: str) -> None:
    target = check_webhook(url)
    assert (target.host, target.port, target.path) == (host, port, path)


def test_an_allowed_network_is_allowed_and_no_other() -> None:
    networks = ("127.0.0.0/8", "fd00::/8")
    for url in ("http://127.0.0.1:9/", "http://localhost/", "http://[::ffff:127.0.0.1]/", "http://[fd12::1]/"):
        check_webhook(url, networks)
    for url in ("http://10.0.0.1/", "http://[::1]/"):
        with pytest.raises(InvalidPayload):
            check_webhook(url, networks)


def test_every_way_of_submitting_checks_the_webhook() -> None:
    body = {"kind": "embedding", "model": "tiny", "input": "x", "webhook": "http://10.0.0.1/"}
    with pytest.raises(InvalidPayload) as refused:
        parse_job(body, InputLimits())
    assert refused.value.param == "webhook"
    assert parse_job(body, InputLimits(webhook_networks=("10.0.0.0/8",))).request.webhook == "http://10.0.0.1/"


@given(st.integers(0, 2**32 - 1))
def test_every_spelling_of_an_address_is_judged_as_the_address(value: int) -> None:
    address = IPv4Address(value)
    a, b, c, d = address.packed
    spellings = (
        str(value),
        hex(value),
        f"{a}.{(b << 16) + (c << 8) + d}",
        f"{a:#x}.{b:#x}.{c}.{d}",
        f"0{a:o}.{b}.{c}.{d}",
    )
    for spelled in (*spellings, f"[::ffff:{address}]", f"[64:ff9b::{address}]"):
        try:
            target = check_webhook(f"http://{spelled}/")
        except InvalidPayload:
            assert not is_reachable(address)
        else:
            assert is_reachable(address) and target.address is not None


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=6, network="fc00::/7"))
def test_no_private_address_is_reachable(address: IPv4Address | IPv6Address) -> None:
    assert not is_reachable(ip_address(str(address)))
