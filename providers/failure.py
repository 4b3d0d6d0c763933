"""Makes an error out of a reply that is none of the answers, by tables and never by the text of a message."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from providers.call import Reply
from providers.completion import parse_json, storable
from providers.facts import DOUBTFUL, ProviderFacts
from providers.key import without_keys
from providers.retry_after import retry_after
from routing.errors import (
    Aftermath,
    ModelGone,
    PromptTooLong,
    ProviderError,
    QueryRejected,
    ReplyUnusable,
    TargetOverloaded,
    TargetThrottled,
    TargetUnreachable,
)
from routing.lane import RateLimits
from routing.query import Target

SAID_CHARS = 300
QUOTED = frozenset({QueryRejected, PromptTooLong, ModelGone})
"""What is about the query or its model. Other messages may name the operator's organisation, limits and usage."""
ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def read_failure(
    target: Target, reply: Reply, facts: ProviderFacts, keys: Sequence[str], limits: RateLimits | None
) -> ProviderError:
    """The error of a reply whose status is none of success. An error status is not charged."""
    error = _error_fields(reply)
    named_kind = _named_kind(error, facts)
    kind = named_kind or _kind(reply.status, facts)
    is_doubtful = named_kind is None and (reply.status, kind) in DOUBTFUL
    code = error.get("code")
    named = f" {without_keys(code, keys)}" if isinstance(code, str) and ERROR_CODE.fullmatch(code) else ""
    return kind(
        target,
        f"HTTP {reply.status}{named}",
        said=_message(error, facts, keys) if kind in QUOTED else None,
        status=reply.status,
        retry_after=retry_after(reply.headers, limits, time.time()) if kind is TargetThrottled else None,
        aftermath=Aftermath(limits=limits),
        standing=TargetUnreachable.code if is_doubtful else None,
    )


def _message(error: Mapping[str, Any], facts: ProviderFacts, keys: Sequence[str]) -> str | None:
    """The provider's own words, unless its code says that they are about the operator's account."""
    message = error.get("message")
    if not message or not facts.private_codes.isdisjoint(_words(error)):
        return None
    return without_keys(storable(str(message)), keys)[:SAID_CHARS]


def _named_kind(error: Mapping[str, Any], facts: ProviderFacts) -> type[ProviderError] | None:
    """What the error's own code means; None where it has none that is known."""
    return next((facts.code_errors[word] for word in _words(error) if word in facts.code_errors), None)


def _words(error: Mapping[str, Any]) -> list[str]:
    return [word for word in (error.get("code"), error.get("type")) if isinstance(word, str)]


def _kind(status: int, facts: ProviderFacts) -> type[ProviderError]:
    if status in facts.status_errors:
        return facts.status_errors[status]
    if status < 400:  # redirects are not followed: the key would travel
        return ReplyUnusable
    return QueryRejected if status < 500 else TargetOverloaded


def _error_fields(reply: Reply) -> Mapping[str, Any]:
    """The `error` object of an OpenAI-style body; empty where the body is anything else."""
    try:
        body = parse_json(reply.body)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {"message": error}
