"""Connections for addresses that strangers wrote down: to public hosts alone, and over by a deadline.

A name is resolved once, here, and the connection goes to an address that was checked: what a name means may change
between two questions. Each redirect is a connection of its own, or uses one to a host that was checked.
"""

import ipaddress
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import httpcore2
import httpx2

UNICAST = ipaddress.ip_network("2000::/3")  # of IPv6, all that is given out for the public internet
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv6 addresses that stand for IPv4 ones

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class InternalAddressError(Exception):
    """A host lies on this machine, or in a network that is not public."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """End whatever the block's connections do, headers and handshakes too, at a time on `time.monotonic()`'s clock."""
    before = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(before)


def is_public(address: str) -> bool:
    """Tell whether a numeric address is one of the public internet: not loopback, private, link-local or reserved."""
    found = ipaddress.ip_address(address.split("%")[0])
    if found.version == 6:
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found not in UNICAST:  # among them are old and local ways to write IPv4 addresses
            return False
    return found.is_global and not found.is_multicast


def public_addresses(host: str, port: int, allowed: Collection[str]) -> list[str]:
    """Resolve a host, as a name or in any spelling of an address.

    Args:
        host: name or address.
        port: that is to be asked.
        allowed: hosts, as they are written, that may lie anywhere.

    Raises:
        InternalAddressError: an address of it is not public.
        OSError: it has none.
    """
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if host.lower() not in allowed and not all(map(is_public, found)):
        raise InternalAddressError
    return list(dict.fromkeys(found))


def guard(client: httpx2.Client, allowed: Collection[str]) -> None:
    """Let a client ask public hosts and `allowed` ones alone, within the time that `until` leaves.

    A proxy of the user's may lie anywhere. It resolves names itself: what this machine cannot resolve is left to it.
    """
    allowed = {host.lower() for host in allowed}

    def check_proxied(request: httpx2.Request) -> None:
        if client._transport_for_url(request.url) is not client._transport:
            with suppress(OSError, UnicodeError):
                public_addresses(request.url.host, request.url.port or 80, allowed)

    client.event_hooks = {"request": [check_proxied]}
    # The library has no public way to say how its own transports connect; tests notice if that changes.
    client._transport._pool._network_backend = PublicNetwork(allowed)
    for proxy in filter(None, client._mounts.values()):
        proxy._pool._network_backend = TimedNetwork()


class TimedNetwork(httpcore2.SyncBackend):
    """Connects as usual, and to nothing beyond the deadline."""

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any) -> "TimedStream":
        """Connect to a host."""
        return TimedStream(super().connect_tcp(host, port, _left(timeout), *rest, **more))


class PublicNetwork(TimedNetwork):
    """Connects to public hosts, and to some others."""

    def __init__(self, allowed: Collection[str]):
        self.allowed = allowed

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any) -> "TimedStream":
        """Connect to the first address of a host that answers.

        Raises:
            InternalAddressError: an address of the host is not public.
            httpcore2.ConnectError: none answers, or there is none.
            httpcore2.ConnectTimeout: they take too long.
        """
        try:
            addresses = public_addresses(host, port, self.allowed)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(str(error)) from None
        *others, last = addresses
        for address in others:
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return super().connect_tcp(address, port, timeout, *rest, **more)
        return super().connect_tcp(last, port, timeout, *rest, **more)


class TimedStream(httpcore2.NetworkStream):
    """A connection on which nothing lasts beyond the deadline, however often the other side says a little."""

    def __init__(self, stream: httpcore2.NetworkStream):
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what is there."""
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all."""
        self._stream.write(buffer, _left(timeout))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        """Go on in TLS."""
        return TimedStream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        """Tell something of the connection."""
        return self._stream.get_extra_info(info)


def _left(timeout: float | None) -> float | None:
    """Time that one operation may take: what is left until the deadline, where that is less.

    Raises:
        httpcore2.ReadTimeout: nothing is left.
    """
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the deadline has passed")
    return left if timeout is None else min(timeout, left)
