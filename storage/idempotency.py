"""Idempotency keys: the same key and body name the same query, for as long as the key is remembered."""

import hashlib

from storage.connection import RedisClient
from storage.name import idempotency_key


class Conflict(Exception):
    """The key was used with another body."""


class Idempotency:
    """Per tenant. Redis errors pass through: without Redis the promise cannot be kept."""

    def __init__(self, client: RedisClient, ttl_s: int) -> None:
        self._client, self._ttl_s = client, ttl_s

    def remember(self, tenant: str, key: str, body: bytes, query_id: str) -> str:
        """The id of the query that the key stands for: `query_id` at its first use, the first one's from then on.

        `body` is a canonical form of the request. Raises Conflict where the key came with another one.
        """
        digest = hashlib.sha256(body).hexdigest()
        name = idempotency_key(tenant, hashlib.sha256(key.encode()).hexdigest())
        kept = self._client.set(name, f"{query_id} {digest}", nx=True, get=True, ex=self._ttl_s)
        if kept is None:
            return query_id
        first_id, _, first_digest = kept.decode().partition(" ")
        if first_digest != digest:
            raise Conflict
        return str(first_id)
