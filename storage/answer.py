"""Answers as they are cached: one line for the record, one for the caller, so that a hit parses neither twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson
from redis import RedisError

from routing.query import Completion, Target, Usage
from storage.connection import RedisClient

ANSWER_VERSION = 1  # raise it when a field changes: it is part of every fingerprint, so old answers become misses


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer and what it took. Costs in USD; `stored_at` is Unix time in ms."""

    response: str
    tier: str
    target: Target
    model_used: str
    finish_reason: str
    usage: Usage | None
    cost_usd: float
    baseline_usd: float
    score: int
    words: int
    signals: tuple[str, ...]
    stored_at: int

    @classmethod
    def from_completion(cls, completion: Completion, **facts: Any) -> Self:
        return cls(
            response=completion.text,
            model_used=completion.model,
            finish_reason=completion.finish_reason,
            usage=completion.usage,
            **facts,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What the record needs of this answer; never its text."""
        return {
            "tier": self.tier,
            "provider": self.target.provider,
            "model": self.model_used,
            "usage": self.usage.as_dict() if self.usage else None,
            "cost_usd": self.cost_usd,
            "baseline_usd": self.baseline_usd,
            "score": self.score,
            "words": self.words,
            "stored_at": self.stored_at,
        }

    def encode(self, recorded: Mapping[str, Any] | None = None) -> bytes:
        """As it is cached; `recorded` joins the facts in the line for the record."""
        return orjson.dumps(self.facts | dict(recorded or {})) + b"\n" + orjson.dumps(self)

    @classmethod
    def decode(cls, stored: bytes) -> Self:
        fields = orjson.loads(stored[stored.index(b"\n") + 1 :])
        fields["target"] = Target(**fields["target"])
        fields["usage"] = Usage(**fields["usage"]) if fields["usage"] else None
        fields["signals"] = tuple(fields["signals"])
        return cls(**fields)


SHARED = "shared"  # whose the cached answers are where tenants share them


def owned(tenant: str, fingerprint: str) -> str:
    """A fingerprint that says whose it is, so that one tenant's answers and flights can be found and erased."""
    return f"{tenant}:{fingerprint}"


def bare(owned_fingerprint: str) -> str:
    """The fingerprint alone, for places that are to know nothing of tenants."""
    return owned_fingerprint.rpartition(":")[2]


def answer_key(fingerprint: str) -> str:
    return f"aqr:answer:{fingerprint}"


class AnswerCache:
    """The cache where it has a Redis of its own. It may fail; the answer may not: a lost cache is a miss."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def get(self, fingerprint: str) -> bytes | None:
        try:
            found: bytes | None = self._client.get(answer_key(fingerprint))
        except RedisError:
            return None
        return found

    def put(self, fingerprint: str, answer: bytes, ttl_ms: int) -> None:
        try:
            self._client.set(answer_key(fingerprint), answer, px=ttl_ms)
        except RedisError:
            return

    def ping(self) -> None:
        self._client.ping()
