"""The OpenAI chat-completions wire that all providers speak: a query out, a completion or an error back."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from providers.abort import AbortSignal
from providers.call import Aborted, ClientError, ConnectFailed, DeadlinePassed, ReplyCut, ReplyTooLarge
from providers.client import HttpClient
from providers.completion import read_completion
from providers.facts import ProviderFacts
from providers.failure import read_failure
from providers.key import key_id
from providers.rate_limit import read_limits
from routing.catalogue import Catalogue
from routing.errors import (
    Aftermath,
    CallAborted,
    ProviderError,
    ReplyUnusable,
    TargetTimedOut,
    TargetUnreachable,
)
from routing.lane import Lane, RateLimits
from routing.query import Completion, Query, Target
from routing.tier import Tier

CLIENT_ERRORS: Mapping[type[ClientError], type[ProviderError]] = MappingProxyType(
    {
        ConnectFailed: TargetUnreachable,
        ReplyCut: TargetUnreachable,
        DeadlinePassed: TargetTimedOut,
        ReplyTooLarge: ReplyUnusable,
        Aborted: CallAborted,
    }
)


@dataclass(frozen=True, slots=True)
class Answered:
    """A completion, and what its reply's headers say of the lane's allowance."""

    completion: Completion
    limits: RateLimits | None = None


class Provider:
    """One provider with all its keys, ready to be called; safe to share between threads."""

    def __init__(
        self, facts: ProviderFacts, client: HttpClient, base_url: str, keys: Sequence[str], catalogue: Catalogue
    ) -> None:
        self.facts = facts
        self._client = client
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._keys = {key_id(key.strip()): key.strip() for key in keys or ("",)}
        self._catalogue = catalogue
        self._turn = itertools.count()

    def key_ids(self) -> tuple[str, ...]:
        """What stands for each key, "-" where there is none; each call begins with the next one."""
        ids = tuple(self._keys)
        first = next(self._turn) % len(ids)
        return ids[first:] + ids[:first]

    def complete(self, lane: Lane, query: Query, tier: Tier, deadline: float, signal: AbortSignal) -> Answered:
        """The lane's answer; `deadline` is `time.monotonic()` seconds. Raises a ProviderError.

        When another thread sets the signal, the connection is closed at once.
        """
        body = json.dumps(self._payload(lane.target, query, tier)).encode()
        try:
            call = self._client.open(self._url, self._headers(lane.key_id), body, deadline)
            with signal.calling(call.abort):
                reply = call.reply()
        except ClientError as error:
            billing = Aftermath("unknown" if error.is_sent else "free")
            raise CLIENT_ERRORS[type(error)](lane.target, str(error), aftermath=billing) from None
        limits = read_limits(reply.headers, self.facts.limit_headers)
        if reply.status >= 300:
            raise read_failure(lane.target, reply, self.facts, tuple(self._keys.values()), limits)
        return Answered(read_completion(lane.target, reply, limits, names_models=self.facts.names_models), limits)

    def _headers(self, key: str) -> Mapping[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return {**headers, "Authorization": f"Bearer {self._keys[key]}"} if self._keys[key] else headers

    def _payload(self, target: Target, query: Query, tier: Tier) -> dict[str, Any]:
        system = [{"role": "system", "content": query.system}] if query.system else []
        model = self._catalogue.get(target)
        payload = {
            "model": target.model,
            "messages": [*system, {"role": "user", "content": query.text}],
            "max_tokens": max_completion_tokens(query, tier, self.facts.max_tokens_cap),
            "temperature": query.temperature,
            "reasoning_effort": tier.reasoning_effort if model and model.is_reasoning else None,
            "stream": False,
        }
        return {field: value for field, value in payload.items() if value is not None}


def max_completion_tokens(query: Query, tier: Tier, cap: int | None = None) -> int:
    """The longest answer that a provider is asked for; `cap` is the provider's own."""
    caps = (query.max_tokens, tier.max_tokens, cap)
    return min(limit for limit in caps if limit is not None)
