"""Which system a command talks to: flags, else environment, else what an `okome up` that runs wrote of itself."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from compose.cli.outcome import USAGE, CommandFailed

if TYPE_CHECKING:
    import httpx

NOT_FOUND = "no running system found: start one with `okome up`, or name one with --url or OKOME_URL"
REQUEST_TIMEOUT = 10.0
MASK = "********"


@dataclass(frozen=True)
class Target:
    """Empty fields are not known; asking for one that is needed raises CommandFailed."""

    url: str
    api_key: str
    nats_url: str
    ca: Path | None
    key_file: Path | None = None
    """Where the API key is kept; None of one that somebody gave."""
    nats_user: str = ""
    nats_password: str = ""
    processes: tuple[dict[str, Any], ...] = ()
    """As its ready file lists them; none of a system that another machine runs."""

    @classmethod
    def find(cls, url: str | None, *, environment: Mapping[str, str] | None = None) -> Target:
        """The state file's key, NATS and CA are for its own system only: another URL never gets them. Where several run
        and none is named, it is the one started last, and that is said. Raises CommandFailed for variables that no
        command could use."""
        from compose.up import statefile

        env = os.environ if environment is None else environment
        asked = (url or env.get("OKOME_URL") or "").rstrip("/")
        systems = statefile.running()
        known: dict[str, Any] = next((one for one in systems if asked in ("", one.get("url"))), {})
        if not asked and len(systems) > 1 and "OKOME_NATS_URL" not in env:
            others = ", ".join(str(one.get("url")) for one in systems[1:])
            sys.stderr.write(f"okome: using {known.get('url')}, started last; --url chooses another: {others}\n")
        data = Path(known["data"]) if known else None
        ca = data / "tls" / "ca.pem" if data else None
        if named := env.get("OKOME_CA"):
            ca = _authority(Path(named))
        given = _key(env.get("OKOME_API_KEY", ""))
        key_file = data / "api-key" if data and not given else None
        told, own = env.get("OKOME_NATS_URL", ""), known.get("nats_url", "")
        return cls(
            url=asked or known.get("url", ""),
            api_key=given or known.get("api_key", ""),
            nats_url=(own or told) if url else (told or own),  # a flag wins over the environment
            ca=ca if ca is not None and ca.is_file() else None,
            key_file=key_file if key_file is not None and key_file.is_file() else None,
            nats_user=env.get("OKOME_NATS_USER", ""),
            nats_password=env.get("OKOME_NATS_PASSWORD", ""),
            processes=tuple(known.get("processes", ())),
        )

    def known(self) -> None:
        """Whom to ask, and by which key. Raises CommandFailed."""
        if not self.url:
            raise CommandFailed(NOT_FOUND)
        if not self.api_key:
            raise CommandFailed(f"no API key for {self.url}: set OKOME_API_KEY")

    def client(self) -> httpx.AsyncClient:
        """Speaks as the owner of the API key. A silence longer than two heartbeats is a dead connection.

        Raises CommandFailed.
        """
        import httpx

        self.known()
        try:
            return httpx.AsyncClient(
                base_url=self.url,
                headers={"authorization": f"Bearer {self.api_key}"},
                verify=self.trusted(),
                timeout=httpx.Timeout(REQUEST_TIMEOUT, read=25.0),
                trust_env=not self._here(),  # a proxy does not know this machine, and need not know its keys
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise CommandFailed(f"{self.url} is no address: {error}", USAGE) from error

    def _here(self) -> bool:
        """It runs on this machine, or is reached through it."""
        from compose.up.options import loopback

        return bool(self.processes) or loopback(urlsplit(self.url).hostname or "")

    def trusted(self) -> ssl.SSLContext | bool:
        """What a certificate is checked against: the system's own throw-away CA, or whom this machine trusts. Raises
        CommandFailed."""
        import httpx

        if self.ca:
            return ssl.create_default_context(cafile=str(self.ca))
        try:
            return httpx.create_ssl_context()  # whom the environment names counts, whatever else of it does not
        except OSError as error:
            raise CommandFailed(f"SSL_CERT_FILE or SSL_CERT_DIR: {error}", USAGE) from error

    def bus(self) -> str:
        """The URL of NATS, for operators' commands. Raises CommandFailed."""
        if not self.nats_url:
            where = f": none of an `okome up` here is known for {self.url}" if self.url else ""
            raise CommandFailed(
                f"this command talks to NATS{where}; start a system with `okome up`, or set OKOME_NATS_URL"
            )
        from broker.bus.settings import nats_servers

        try:
            nats_servers(self.nats_url)
        except ValueError as error:
            raise CommandFailed(f"OKOME_NATS_URL: {error}", USAGE) from error
        return self.nats_url


def _key(text: str) -> str:
    """Without its line end. Raises CommandFailed: a header has no other characters."""
    key = text.strip()
    if not (key.isascii() and key.isprintable()):
        raise CommandFailed("OKOME_API_KEY is not an API key: it is of printable ASCII characters", USAGE)
    return key


def _authority(file: Path) -> Path:
    """Who is to be trusted, in a file that somebody named. Raises CommandFailed: without a word, nobody would be."""
    try:
        ssl.create_default_context(cafile=str(file))
    except OSError as error:
        why = "it holds no certificate (PEM)" if isinstance(error, ssl.SSLError) else error.strerror
        raise CommandFailed(f"OKOME_CA {file}: {why}", USAGE) from error
    return file


def mask_url(urls: str) -> str:
    """Without the passwords that addresses may carry."""
    shown = []
    for url in urls.split(","):
        before, at, behind = url.rpartition("@")
        scheme, slashes, _ = before.rpartition("://")
        shown.append(f"{scheme}{slashes}{MASK}@{behind}" if at else url)
    return ",".join(shown)
