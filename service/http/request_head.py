"""A request's head: what is wrong with it, and the same without its offer to speak another protocol. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, values without blanks around them."""

HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?")
"""RFC 9110 §7.2: a name, an IPv4 address or an IPv6 address in brackets, and perhaps a port."""
VERSIONS = ("1.0", "1.1")


class HeadError(Exception):
    """A head that can be parsed and yet not be answered."""


def check_head(version: str, headers: Headers) -> None:
    """RFC 9112 §2.3, §3.2 and §6.1. Raises HeadError."""
    if version not in VERSIONS:
        raise HeadError(f"HTTP/{version} is not offered: send HTTP/1.1")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise HeadError("a request has one Host header")
    if hosts and HOST.fullmatch(hosts[0]) is None:
        raise HeadError("the Host header is neither a name nor an address")
    for name, value in headers:
        if name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
            raise HeadError("the only transfer coding is chunked, and HTTP/1.0 has none")
        if name == b"te" and b"chunked" in value.lower():
            raise HeadError("TE does not name chunked, which is always taken")


def check_upgrade(method: bytes, headers: Headers) -> None:
    """An offer of HTTP/2 can be ignored, a wish for a tunnel or a WebSocket cannot. Raises HeadError."""
    if method == b"CONNECT" or any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers):
        raise HeadError("neither a tunnel nor a WebSocket is offered here")


def without_upgrade(method: bytes, target: bytes, headers: Headers) -> bytes:
    """A request's head again, its ``Upgrade`` left out: a server may ignore the offer (RFC 9110 §7.8)."""
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    for name, value in headers:
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(option for option in options if option.lower() != b"upgrade")
        if name != b"upgrade":
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
