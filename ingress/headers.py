"""Header fields on their way through the ingress, both ways. Pure.

A field is a pair of bytes, the name in lower case. What belongs to one connection stays on it; what ingress and node
say to each other is neither believed from a client nor shown to one.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from broker.bus.credentials import ADMISSION_HEADER, CLOCK_HEADER, RELAY_HEADER

Field = tuple[bytes, bytes]
Network = IPv4Network | IPv6Network

RELAY = RELAY_HEADER.encode()
ADMISSION = ADMISSION_HEADER.encode()
CLOCK = CLOCK_HEADER.encode()
REQUEST_ID = b"x-request-id"
INTERNAL = frozenset({RELAY, ADMISSION, CLOCK})

# RFC 9110 §7.6.1; `expect` is answered here, the length is told anew.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"content-length",
    }
)
# A client's word about who it is is replaced by ours.
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip"})
_IN_BETWEEN = _FORWARDED | {b"via"}
_KEPT = frozenset({b"host", b"authorization", b"cookie", b"origin", b"content-type"})


def value(fields: Iterable[Field], name: bytes) -> bytes:
    """The first value of `name`, b"" where there is none."""
    for key, found in fields:
        if key == name:
            return found
    return b""


def tokens(fields: Iterable[Field], name: bytes) -> list[bytes]:
    """All members of a comma-separated field, in order, as they were written."""
    found = [part.strip() for key, text in fields if key == name for part in text.split(b",")]
    return [token for token in found if token]


def to_node(fields: list[Field]) -> list[Field]:
    """What of a client's request goes to a node: end-to-end fields, none that only the ingress may say."""
    named = {token.lower() for token in tokens(fields, b"connection")} - _KEPT
    return [
        (name, text)
        for name, text in fields
        if name not in _HOP_BY_HOP
        and name not in _FORWARDED
        and name not in named
        and name != REQUEST_ID
        and not name.startswith(b"x-okome-")
    ]


def to_client(fields: list[Field]) -> list[Field]:
    """What of a node's answer goes to a client. The node's own address and software are nobody's business."""
    named = {token.lower() for token in tokens(fields, b"connection")}
    return [
        (name, text)
        for name, text in fields
        if name not in _HOP_BY_HOP
        and name not in INTERNAL
        and name not in named
        and name not in (b"server", REQUEST_ID)
    ]


def networks(text: str) -> list[Network]:
    """Addresses and networks separated by commas; raises ValueError."""
    return [ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip()]


def is_loopback(ip: str) -> bool:
    return _within(ip, _LOOPBACK)


def client_of(peer: str, fields: list[Field], trusted: list[Network]) -> tuple[str, str]:
    """(address, protocol or "") of the client: the peer, or what a trusted proxy says of it.

    The last address in X-Forwarded-For that is not itself a trusted proxy counts: those before it are hearsay.
    """
    if not trusted or not _within(peer, trusted):
        return peer, ""
    proto = value(fields, b"x-forwarded-proto").decode("latin-1").strip().lower()
    for hop in reversed(tokens(fields, b"x-forwarded-for")):
        ip = hop.decode("latin-1")
        if not _within(ip, trusted):
            return (ip if _address(ip) else peer), proto if proto in ("http", "https") else ""
    return peer, proto if proto in ("http", "https") else ""


def is_forwarded(fields: list[Field]) -> bool:
    """Whether something that is in between says so: then the peer's address tells nothing of the client's."""
    return any(name in _IN_BETWEEN for name, _ in fields)


def counted_as(ip: str) -> str:
    """By what an address is counted: itself, and of IPv6 its /64, which is the least that one client has."""
    address = _address(ip)
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address or ip)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """None where it is none; IPv4 that is written as IPv6 is IPv4."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _within(ip: str, networks: list[Network]) -> bool:
    address = _address(ip)
    return address is not None and any(address in network for network in networks)


_LOOPBACK = networks("127.0.0.0/8, ::1")
