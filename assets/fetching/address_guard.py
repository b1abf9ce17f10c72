"""Where a connection may go: to public addresses over http(s), and to hosts that the settings list.

URLs come from strangers, and so do the redirects and the pages behind them. The check is made where
the socket is opened: a name is resolved once, all its addresses are checked, and the connection
goes to one of them. So a later answer of the name server changes nothing, and redirects and media
URLs found in pages are checked too.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from assets.fetching.urls import MalformedUrlError, split_url

DEFAULT_PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What `is_global` says of these differs between versions of Python. Written out, the answer is the
# same on all of them. From IANA's registries of special-purpose addresses.
SPECIAL_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by a provider's customers
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, and the metadata service of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
# All that was ever given to the public Internet. Outside of it lie, among others, addresses that
# are site-local (fec0::/10), compatible with IPv4 (::/96), and of local NAT64 (64:ff9b:1::/48).
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
SPECIAL_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments, among them Teredo, which carries an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4, which carries an IPv4 address
            "3fff::/20",
        ),
    )
)


class BlockedError(Exception):
    """A URL or an address that must not be contacted.

    It is no OSError, so that nothing takes it for a network failure and retries.
    """


class Guard:
    """Judges URLs and opens sockets.

    Args:
        allow: `host` or `host:port` that may be contacted although it is a private address (a
            mirror inside the company, the demo's own server).
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self.allow = frozenset(entry.lower() for entry in allow)

    def check_url(self, url: str) -> None:
        """Scheme and, where the host is written as an address or is this machine, the address. No
        name is resolved.

        Raises:
            BlockedError: anything but http(s), or a private address that is not allowed.
        """
        try:
            parts = split_url(url)
        except MalformedUrlError as error:
            raise BlockedError(str(error)) from None
        if parts.scheme not in DEFAULT_PORTS:
            raise BlockedError(f"{parts.scheme or 'no'} scheme; only http and https are fetched")
        host, port = (parts.hostname or "").lower(), parts.port or DEFAULT_PORTS[parts.scheme]
        if not host:
            raise BlockedError("a URL without a host")
        if self.allowed(host, port):
            return
        if host == "localhost" or host.endswith(".localhost"):
            raise BlockedError(f"{host} is this machine")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return
        self._check_address(host, address)

    def allowed(self, host: str, port: int) -> bool:
        return host.lower() in self.allow or f"{host.lower()}:{port}" in self.allow

    def connect(self, host: str, port: int, **options: Any) -> socket.socket:
        """A connected socket to `host`, only if all its addresses are public or the host is
        allowed.

        Args:
            options: `timeout`, `source_address` and `socket_options` as urllib3 keeps them.

        Raises:
            BlockedError: one of the addresses is not public.
            OSError: no address could be reached.
        """
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        if not self.allowed(host, port):
            for *_, address in found:
                self._check_address(host, ipaddress.ip_address(str(address[0]).partition("%")[0]))
        last: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in found:
            connection = socket.socket(family, kind, protocol)
            try:
                for option in options.get("socket_options") or ():
                    connection.setsockopt(*option)
                if isinstance(options.get("timeout"), int | float):
                    connection.settimeout(options["timeout"])
                if options.get("source_address"):
                    connection.bind(options["source_address"])
                connection.connect(address)
                return connection
            except OSError as error:
                connection.close()
                last = error
        raise last

    def _check_address(
        self, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address
    ) -> None:
        if not is_public(address):
            raise BlockedError(f"{host} leads to {address}, which is not a public address")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address belongs to the public Internet, on every version of Python alike.

    An IPv6 address that stands for an IPv4 one (mapped, or translated by NAT64) is judged by that
    one. Tunnels that carry one (6to4, Teredo) are refused: nobody serves videos through them.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in network for network in SPECIAL_V4)
    if address.ipv4_mapped:
        return is_public(address.ipv4_mapped)  # what the kernel connects to
    if address in NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return (
        address in PUBLIC_V6
        and address.is_global
        and not any(address in network for network in SPECIAL_V6)
    )


def guard_manager(manager: Any, guard: Guard) -> Any:
    """Make a urllib3 PoolManager open its sockets through `guard`. Returns the manager."""

    class Plain(_GuardedConnection, HTTPConnection):
        pass

    class Secure(_GuardedConnection, HTTPSConnection):
        pass

    Plain.guard = Secure.guard = guard
    plain_pool = type("GuardedPool", (HTTPConnectionPool,), {"ConnectionCls": Plain})
    secure_pool = type("GuardedSecurePool", (HTTPSConnectionPool,), {"ConnectionCls": Secure})
    manager.pool_classes_by_scheme = {"http": plain_pool, "https": secure_pool}
    return manager


class _GuardedConnection:
    guard: Guard

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        try:
            return self.guard.connect(
                connection._dns_host,
                connection.port,
                timeout=connection.timeout,
                source_address=connection.source_address,
                socket_options=connection.socket_options,
            )
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(
                connection, f"connection to {connection.host} timed out"
            ) from error
        except OSError as error:
            raise NewConnectionError(
                connection, f"no connection to {connection.host}: {error}"
            ) from error
