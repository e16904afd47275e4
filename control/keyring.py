"""The keys that OKOME keeps: those it signs with, the one between ingress and node, and the API keys of programs.

Only OKOME reads bucket `secrets`. A public key is published before anything is signed with its private half.
"""

from __future__ import annotations

import json
from typing import Any

import structlog

from broker.bus.clock import now_ms
from broker.bus.credentials import SigningKey, digest, key_id, new_api_key, new_internal_key
from broker.bus.errors import BucketConflict, Refusal
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.operations import CreateKey
from broker.bus.records import ApiKey, Revocation, decode, encode

INTERNAL = "internal"
SIGNING = "signing."
DEFAULT_TENANT = "default"

log = structlog.get_logger("control")


class Keyring:
    """The keys in KV. `open` before anything else; `signing` is the newest signing key."""

    def __init__(self, bus: Bus) -> None:
        self._keys = Bucket(bus, "keys")
        self._jwks = Bucket(bus, "jwks")
        self._secrets = Bucket(bus, "secrets")
        self._revoked = Bucket(bus, "revoked")
        self.signing: SigningKey
        self._kid = ""

    async def open(self, first_api_key: str = "") -> None:
        """Make what is missing: a signing key, the internal key, the first API key. Repeatable. Raises BusError."""
        self.signing = await self._signing_key()
        try:
            await self._keys.create(INTERNAL, json.dumps({"key": new_internal_key()}).encode())
        except BucketConflict:
            log.debug("key.found", key=INTERNAL)
        if first_api_key:
            await self._accept(first_api_key)

    async def _signing_key(self) -> SigningKey:
        """Replicas that start at once on an empty bucket may make one each; both are published, both count."""
        stored = await self._secrets.all(SIGNING + "*")
        if not stored:
            made = SigningKey.generate()
            await self._jwks.put(made.kid, json.dumps(made.public).encode())
            secret = json.dumps({**made.private, "created_at": now_ms()}).encode()
            await self._secrets.create(SIGNING + made.kid, secret)
            log.info("key.created", kid=made.kid)
            self._kid = made.kid
            return made
        newest: dict[str, Any] = {}
        for entry in stored.values():
            jwk = json.loads(entry.value)
            key = SigningKey(jwk["kid"], {name: value for name, value in jwk.items() if name != "created_at"})
            if await self._jwks.get(key.kid) is None:
                await self._jwks.put(key.kid, json.dumps(key.public).encode())
            if not newest or (jwk["created_at"], jwk["kid"]) > (newest["created_at"], newest["kid"]):
                newest = jwk
        created_at = newest.pop("created_at")
        if newest["kid"] != self._kid:
            log.info("key.opened", kid=newest["kid"], created_at=created_at)
        self._kid = newest["kid"]
        return SigningKey(newest["kid"], newest)

    async def _accept(self, api_key: str) -> None:
        """An API key that somebody else made: its hash is kept, unless it was revoked, however long ago."""
        hashed = digest(api_key)
        record = ApiKey(id=key_id(api_key), tenant=DEFAULT_TENANT, name="first", created_at=now_ms())
        if await self._revoked.get(f"key.{record.id}") is not None:
            log.warning("key.stays_revoked", key=record.id)
            return
        try:
            # Where nothing ever was: `create` would write over the deletion of a key whose revocation has aged out.
            await self._keys.update(hashed, encode(record), 0)
            log.info("key.accepted", key=record.id)
        except BucketConflict:
            log.debug("key.found", key=record.id)

    async def find(self, api_key: str) -> ApiKey:
        """Who that API key is; raises Refusal."""
        entry = await self._keys.get(digest(api_key))
        if entry is None or not api_key:
            raise Refusal("unauthenticated", "this API key is not known here")
        return decode(entry.value, ApiKey)

    async def revoked(self, id: str) -> bool:
        """Whether the API key of that id was revoked; who has none ("", `login`) cannot lose it."""
        return await self._revoked.get(f"key.{id}") is not None

    async def create(self, question: CreateKey) -> dict[str, str]:
        """A new API key: the only time that it is seen."""
        if not question.name.strip():
            raise Refusal("malformed", "a key needs a name", param="name")
        if not is_tenant(question.tenant):
            raise Refusal("malformed", "a tenant is 1 to 64 of A-Z a-z 0-9 _ -", param="tenant")
        api_key = new_api_key()
        hashed = digest(api_key)
        record = ApiKey(key_id(api_key), question.tenant, question.name, now_ms())
        await self._keys.create(hashed, encode(record))
        log.info("key.created", key=record.id, tenant=record.tenant)
        return {"key": api_key, "id": record.id, "tenant": record.tenant, "name": record.name}

    async def list(self) -> dict[str, list[ApiKey]]:
        records = [decode(entry.value, ApiKey) for key, entry in (await self._keys.all()).items() if key != INTERNAL]
        return {"keys": sorted(records, key=lambda record: (record.created_at, record.id))}

    async def revoke(self, id: str) -> None:
        """From now on neither the key nor any token that it was given for counts. Raises Refusal `not_found`."""
        for key, entry in (await self._keys.all()).items():
            if key != INTERNAL and decode(entry.value, ApiKey).id == id:
                # Revoked first: a replica that dies in between leaves a key that opens nothing new by token.
                await self._revoked.put(f"key.{id}", encode(Revocation(now_ms(), "key revoked")))
                await self._keys.delete(key)
                log.info("key.revoked", key=id)
                return
        raise Refusal("not_found", "there is no such key", param="id")


def is_tenant(text: str) -> bool:
    """Whether this may be part of a bucket's key."""
    return 0 < len(text) <= 64 and text.isascii() and text.replace("_", "").replace("-", "").isalnum()
