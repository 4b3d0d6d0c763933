"""The OpenAI chat-completions wire that all providers speak: a query out, a completion or an error back."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from providers.call import Aborted, ClientError, ConnectFailed, DeadlinePassed, Reply, ReplyCut, ReplyTooLarge
from providers.client import HttpClient
from providers.completion import parse_json, read_completion, storable
from providers.retry_after import retry_after
from routing.catalogue import Catalogue
from routing.errors import (
    CallAborted,
    KeyRejected,
    ModelGone,
    PromptTooLong,
    ProviderError,
    QueryRejected,
    ReplyUnusable,
    TargetOverloaded,
    TargetThrottled,
    TargetTimedOut,
    TargetUnreachable,
)
from routing.query import Completion, Query, Target
from routing.tier import Tier

SAID_CHARS = 300
ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
KEY_PREFIX_CHARS = 8

STATUS_ERRORS: Mapping[int, type[ProviderError]] = MappingProxyType(
    {
        401: KeyRejected,
        402: KeyRejected,
        403: KeyRejected,
        404: ModelGone,
        408: TargetTimedOut,
        413: PromptTooLong,
        429: TargetThrottled,
    }
)
"""What the statuses mean wherever a provider does not say otherwise."""

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
class ProviderFacts:
    """How one provider differs from the others.

    `code_errors` go by the error's `code` or `type` and come before `status_errors`; other errors go by the
    class of their status. `timeout_s` replaces the tier's. `names_models` is False where the reply's `model` is not a
    model's name.
    """

    name: str
    display_name: str
    status_errors: Mapping[int, type[ProviderError]]
    code_errors: Mapping[str, type[ProviderError]]
    max_tokens_cap: int | None = None
    timeout_s: float | None = None
    names_models: bool = True


class Provider:
    """One provider, ready to be called; safe to share between threads."""

    def __init__(
        self, facts: ProviderFacts, client: HttpClient, base_url: str, key: str | None, catalogue: Catalogue
    ) -> None:
        self.facts = facts
        self._client = client
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._key = (key or "").strip()
        self._catalogue = catalogue
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"

    def complete(self, target: Target, query: Query, tier: Tier, deadline: float) -> Completion:
        """The target's answer; `deadline` is `time.monotonic()` seconds. Raises a ProviderError."""
        body = json.dumps(self._payload(target, query, tier)).encode()
        try:
            reply = self._client.post(self._url, self._headers, body, deadline)
        except ClientError as error:
            raise CLIENT_ERRORS[type(error)](target, str(error)) from None
        if reply.status >= 300:
            raise self._failure(target, reply)
        return read_completion(target, reply, names_models=self.facts.names_models)

    def _payload(self, target: Target, query: Query, tier: Tier) -> dict[str, Any]:
        system = [{"role": "system", "content": query.system}] if query.system else []
        model = self._catalogue.get(target)
        caps = (query.max_tokens, tier.max_tokens, self.facts.max_tokens_cap)
        payload = {
            "model": target.model,
            "messages": [*system, {"role": "user", "content": query.text}],
            "max_tokens": min(cap for cap in caps if cap is not None),
            "temperature": query.temperature,
            "reasoning_effort": tier.reasoning_effort if model and model.is_reasoning else None,
            "stream": False,
        }
        return {field: value for field, value in payload.items() if value is not None}

    def _failure(self, target: Target, reply: Reply) -> ProviderError:
        error = _error_fields(reply)
        kind = self._kind(reply.status, error)
        code, message = error.get("code"), error.get("message")
        named = f" {self._without_key(code)}" if isinstance(code, str) and ERROR_CODE.fullmatch(code) else ""
        return kind(
            target,
            f"HTTP {reply.status}{named}",
            said=self._without_key(storable(str(message)))[:SAID_CHARS] if message else None,
            status=reply.status,
            retry_after=retry_after(reply.headers, time.time()) if kind is TargetThrottled else None,
        )

    def _kind(self, status: int, error: Mapping[str, Any]) -> type[ProviderError]:
        for word in (error.get("code"), error.get("type")):
            if isinstance(word, str) and word in self.facts.code_errors:
                return self.facts.code_errors[word]
        if status in self.facts.status_errors:
            return self.facts.status_errors[status]
        if status < 400:  # redirects are not followed: the key would travel
            return ReplyUnusable
        return QueryRejected if status < 500 else TargetOverloaded

    def _without_key(self, text: str) -> str:
        if not self._key:
            return text
        return re.sub(re.escape(self._key[:KEY_PREFIX_CHARS]) + r"\S*", "[key]", text)


def _error_fields(reply: Reply) -> Mapping[str, Any]:
    """The `error` object of an OpenAI-style body; empty where the body is anything else."""
    try:
        body = parse_json(reply.body)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {"message": error}
