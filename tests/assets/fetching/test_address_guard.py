"""A connection goes to a public address or to a host that the settings list, whatever a name server
says later.
"""

from __future__ import annotations

import ipaddress
import socket

import pytest
import urllib3

from assets.fetching.address_guard import BlockedError, Guard, guard_manager, is_public
from tests.servers.faulty import FaultyMediaServer

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "::1",
    "fe80::1",
    "fc00::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    # what some versions of Python call global
    "192.0.0.8",
    "192.0.0.9",
    "192.0.0.170",
    "192.88.99.1",
    "198.19.255.1",
    "203.0.113.9",
    "255.255.255.255",
    "::",
    "::127.0.0.1",
    "::10.1.2.3",
    "::8.8.8.8",
    "::ffff:169.254.169.254",
    "::ffff:192.0.0.8",
    "64:ff9b::192.168.0.1",
    "64:ff9b:1::1",
    "64:ff9b:1:fffe::8.8.8.8",
    "100::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:0:0808:0808::1",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:0808:0808::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
]
PUBLIC = [
    "8.8.8.8",
    "93.184.216.34",
    "192.0.1.1",
    "192.88.98.1",
    "223.255.255.254",
    "2606:2800:220:1:248:1893:25c8:1946",
    "2a00:1450:4001:81b::200e",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


@pytest.fixture
def names(monkeypatch):
    """A name server under the test's control: name -> addresses, one list for each time it is
    asked.
    """
    table: dict[str, list[list[str]]] = {}

    def resolve(host, port, *args, **options):
        answers = table.get(host)
        addresses = (
            [host] if answers is None else answers.pop(0) if len(answers) > 1 else answers[0]
        )
        return [
            (
                socket.AF_INET6 if ":" in a else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (a, port, 0, 0) if ":" in a else (a, port),
            )
            for a in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return table


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_leads_to_a_private_address_is_blocked(address, names):
    names["harmless.example"] = [[address]]
    with pytest.raises(BlockedError, match="not a public address"):
        Guard().connect("harmless.example", 80, timeout=1)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public_on_every_version_of_python(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_newer_pythons_opinion_changes_nothing(monkeypatch):
    """Versions differ in `is_global`; whichever calls all of these global, they stay blocked."""
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        monkeypatch.setattr(kind, "is_global", property(lambda address: True))
    assert [address for address in PRIVATE if is_public(ipaddress.ip_address(address))] == []


def test_one_private_address_among_public_ones_is_enough(names):
    names["mixed.example"] = [["93.184.216.34", "10.0.0.1"]]
    with pytest.raises(BlockedError):
        Guard().connect("mixed.example", 80, timeout=1)


def test_the_address_that_was_judged_is_the_one_that_is_contacted(names, monkeypatch):
    """A name server that answers differently the second time gets nobody anywhere: it is asked
    once.
    """
    names["rebinding.example"] = [["93.184.216.34"], ["127.0.0.1"]]
    contacted = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: contacted.append(address))
    Guard().connect("rebinding.example", 80, timeout=1).close()
    assert contacted == [("93.184.216.34", 80)]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/x",
        "data:text/plain,x",
        "//example.org/x",
        "http:///x",
        "http://localhost/x",
        "http://a.localhost/x",
        "http://127.0.0.1/x",
        "http://[::1]:80/x",
        "http://example.org:99999/x",
        "javascript:alert(1)",
    ],
)
def test_a_url_is_judged_before_any_name_is_resolved(url, monkeypatch):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *args, **options: pytest.fail("a name was resolved")
    )
    with pytest.raises(BlockedError):
        Guard().check_url(url)


def test_listed_hosts_are_allowed_by_name_and_port():
    guard = Guard(["127.0.0.1:8000", "mirror.internal"])
    guard.check_url("http://127.0.0.1:8000/x")
    guard.check_url("https://MIRROR.internal/x")
    with pytest.raises(BlockedError):
        guard.check_url("http://127.0.0.1:8001/x")


def test_a_pool_of_connections_goes_through_the_guard(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with FaultyMediaServer(tmp_path) as server:
        open_pool = guard_manager(urllib3.PoolManager(), Guard([f"127.0.0.1:{server.port}"]))
        assert open_pool.request("GET", f"{server.url}/a.txt").data == b"hello"
        closed_pool = guard_manager(urllib3.PoolManager(), Guard())
        asked = len(server.log)
        with pytest.raises(BlockedError):
            closed_pool.request("GET", f"{server.url}/a.txt")
        assert len(server.log) == asked
