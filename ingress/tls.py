"""TLS at the edge: a context from a certificate, and a throw-away authority for one machine."""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trustme

from broker.bus import draft


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and up, ALPN http/1.1. Raises OSError (ssl.SSLError) where the files are no certificate and key, or the
    key asks for a pass phrase."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key, password=_nobody)
    return context


def _nobody() -> str:
    """OpenSSL would ask at the terminal."""
    raise OSError("it is encrypted, and nobody is there to type its pass phrase")


def check_certificate(cert: Path) -> None:
    """Raises ValueError, for whoever named the file, where it is no certificate chain."""
    try:
        ssl.create_default_context(cafile=str(cert))
    except OSError as error:
        raise ValueError(f"{cert}: {_why(error, 'it holds no certificate (PEM)')}") from error


def check_key(cert: Path, key: Path) -> None:
    """Raises ValueError, for whoever named the file, where it is not the private key of that certificate chain."""
    try:
        server_context(cert, key)
    except OSError as error:
        raise ValueError(f"{key}: {_why(error, 'it holds no private key (PEM) of that certificate')}") from error


def _why(error: OSError, refused: str) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{refused}: {error}"
    return error.strerror or str(error)


@dataclass(frozen=True)
class ThrowAwayCA:
    """Files of an authority that nobody else knows: `ca` is what a client must trust."""

    ca: Path
    cert: Path
    key: Path


def make_ca(directory: Path, host: str = "127.0.0.1") -> ThrowAwayCA:
    """An authority and a server certificate for `host`, localhost and both loopback addresses, in `directory`.

    What is already there is used again where it still serves for `host`, so that a browser which trusts the authority
    goes on trusting it. The authority's own key is never written, so a certificate for another host, or after the end
    of this one, comes with an authority of its own.
    """
    made = ThrowAwayCA(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    names = dict.fromkeys([host, "localhost", "127.0.0.1", "::1"])
    for everywhere in ("0.0.0.0", "::", ""):
        names.pop(everywhere, None)
    if all(_serves(made, name) for name in names):
        return made
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = trustme.CA(organization_name="okome up")
    issued = authority.issue_cert(*names)
    draft.replace(made.ca, authority.cert_pem.bytes(), 0o644)
    draft.replace(made.cert, issued.cert_chain_pems[0].bytes(), 0o644)
    draft.replace(made.key, issued.private_key_pem.bytes(), 0o600)
    return made


def _serves(made: ThrowAwayCA, name: str) -> bool:
    """Whether a client that trusts the authority takes the certificate for that name now: the two meet in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        trusting = ssl.create_default_context(cafile=str(made.ca))
        client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
        server = server_context(made.cert, made.key).wrap_bio(to_server, to_client, server_side=True)
        for side in (client, server, client):  # with its second turn the client has checked the certificate
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except (OSError, ValueError):  # not there, no certificate, not the authority's, another's key, over, another name
        return False
    return True
