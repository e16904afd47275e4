"""Which system a command talks to: flags, else environment, else what `okome up` wrote into its state file."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compose.cli.outcome import CommandFailed

if TYPE_CHECKING:
    import httpx

NOT_FOUND = "no running system found: start one with `okome up`, or name one with --url or OKOME_URL"
REQUEST_TIMEOUT = 10.0


@dataclass(frozen=True)
class Target:
    """Empty fields are not known; asking for one that is needed raises CommandFailed."""

    url: str
    api_key: str
    nats_url: str
    ca: Path | None

    @classmethod
    def find(cls, url: str | None, *, environment: Mapping[str, str] | None = None) -> Target:
        """The state file's key and CA are for its own system only: another URL never gets them."""
        env = os.environ if environment is None else environment
        state = read_state()
        asked = (url or env.get("OKOME_URL") or "").rstrip("/")
        same = not asked or asked == state.get("url")
        known = state if same else {}
        ca = Path(known["data"]) / "tls" / "ca.pem" if known.get("data") else None
        if named := env.get("OKOME_CA"):
            ca = Path(named)
        return cls(
            url=asked or known.get("url", ""),
            api_key=env.get("OKOME_API_KEY") or known.get("api_key", ""),
            nats_url=env.get("OKOME_NATS_URL") or known.get("nats_url", ""),
            ca=ca if ca is not None and ca.is_file() else None,
        )

    def known(self) -> None:
        """Whom to ask, and by which key. Raises CommandFailed."""
        if not self.url:
            raise CommandFailed(NOT_FOUND)
        if not self.api_key:
            raise CommandFailed(f"no API key for {self.url}: set OKOME_API_KEY")

    def client(self) -> httpx.AsyncClient:
        """Speaks as the owner of the API key. A silence longer than two heartbeats is a dead connection."""
        import httpx

        self.known()
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {self.api_key}"},
            verify=self.trusted(),
            timeout=httpx.Timeout(REQUEST_TIMEOUT, read=25.0),
        )

    def trusted(self) -> ssl.SSLContext | bool:
        """What a certificate is checked against: the system's own throw-away CA, or whom this machine trusts."""
        return ssl.create_default_context(cafile=str(self.ca)) if self.ca else True

    def bus(self) -> str:
        """The URL of NATS, for operators' commands."""
        if not self.nats_url:
            raise CommandFailed("this command talks to NATS: start a system with `okome up`, or set OKOME_NATS_URL")
        return self.nats_url


def read_state() -> dict[str, Any]:
    """What `okome up` wrote last; {} when nothing is there. A broken file counts as none: the next start mends it."""
    from compose.up.readyfile import state_file

    try:
        state = json.loads(state_file().read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
