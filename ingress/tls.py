"""TLS at the edge: a context from a certificate, and a throw-away authority for one machine."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and up, ALPN http/1.1. Raises OSError (ssl.SSLError) where the files are no certificate and key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key)
    return context


@dataclass(frozen=True)
class ThrowAwayCA:
    """Files of an authority that nobody else knows: `ca` is what a client must trust."""

    ca: Path
    cert: Path
    key: Path


def make_ca(directory: Path, host: str = "127.0.0.1") -> ThrowAwayCA:
    """An authority and a server certificate for `host`, localhost and both loopback addresses, in `directory`.

    What is already there is used again, so that a browser which trusts the authority goes on trusting it. The
    authority's own key is never written.
    """
    made = ThrowAwayCA(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    if all(path.exists() for path in (made.ca, made.cert, made.key)):
        return made
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = dict.fromkeys([host, "localhost", "127.0.0.1", "::1"])
    for everywhere in ("0.0.0.0", "::", ""):
        names.pop(everywhere, None)
    authority = trustme.CA(organization_name="okome up")
    issued = authority.issue_cert(*names)
    authority.cert_pem.write_to_path(made.ca)
    issued.cert_chain_pems[0].write_to_path(made.cert)
    descriptor = os.open(made.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(issued.private_key_pem.bytes())
    return made
