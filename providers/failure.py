"""Makes an error out of a reply that is none of the answers, by tables and never by the text of a message."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from providers.call import Reply
from providers.completion import parse_json, storable
from providers.facts import ProviderFacts
from providers.key import without_keys
from providers.retry_after import retry_after
from routing.errors import Aftermath, ProviderError, QueryRejected, ReplyUnusable, TargetOverloaded, TargetThrottled
from routing.lane import RateLimits
from routing.query import Target

SAID_CHARS = 300
ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def read_failure(
    target: Target, reply: Reply, facts: ProviderFacts, keys: Sequence[str], limits: RateLimits | None
) -> ProviderError:
    """The error of a reply whose status is none of success. An error status is not charged."""
    error = _error_fields(reply)
    kind = _kind(reply.status, error, facts)
    code, message = error.get("code"), error.get("message")
    named = f" {without_keys(code, keys)}" if isinstance(code, str) and ERROR_CODE.fullmatch(code) else ""
    return kind(
        target,
        f"HTTP {reply.status}{named}",
        said=without_keys(storable(str(message)), keys)[:SAID_CHARS] if message else None,
        status=reply.status,
        retry_after=retry_after(reply.headers, limits, time.time()) if kind is TargetThrottled else None,
        aftermath=Aftermath(limits=limits),
    )


def _kind(status: int, error: Mapping[str, Any], facts: ProviderFacts) -> type[ProviderError]:
    for word in (error.get("code"), error.get("type")):
        if isinstance(word, str) and word in facts.code_errors:
            return facts.code_errors[word]
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
