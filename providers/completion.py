"""Reads a chat completion out of a reply, trusting none of it."""

import json
from typing import Any

from providers.call import Reply
from routing.errors import ReplyUnusable
from routing.query import Completion, Target, Usage

MODEL_NAME_CHARS = 128  # what the analytics tables hold
MAX_TOKENS_BILLED = 2**31 - 1  # likewise; more is no count of tokens

FINISH_REASONS = {"eos": "stop"}
"""Together's own words for OpenAI's."""

UNUSABLE_FINISHES = {"content_filter", "error"}


def read_completion(target: Target, reply: Reply, *, names_models: bool = True) -> Completion:
    """The completion in a successful reply. Raises ReplyUnusable where there is none to be read."""
    try:
        return _completion(target, _body(reply), names_models)
    except _Unusable as fault:
        raise ReplyUnusable(target, str(fault), status=reply.status) from None


def parse_json(body: bytes) -> Any:
    """Any JSON value. Raises ValueError, too where the nesting is deeper than Python's stack."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def storable(text: str) -> str:
    """Without what JSON may carry but UTF-8 (lone surrogates) or PostgreSQL (NUL) cannot."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class _Unusable(Exception):
    """Why the reply is of no use."""


def _body(reply: Reply) -> dict[str, Any]:
    kind = reply.headers.get("Content-Type", "")
    if "json" not in kind.lower():
        raise _Unusable(f"the reply is not JSON but {kind[:80] or 'of no type'}")
    try:
        body = parse_json(reply.body)
    except ValueError:
        raise _Unusable("the reply is not valid JSON") from None
    if not isinstance(body, dict):
        raise _Unusable("the reply is not an object")
    return body


def _completion(target: Target, body: dict[str, Any], names_models: bool) -> Completion:
    match body.get("choices"):
        case [{"message": {"content": content}} as choice, *_]:
            said = choice.get("finish_reason")
        case _:
            raise _Unusable("the reply has no choices")
    finish = FINISH_REASONS.get(said, said) if isinstance(said, str) else "stop"
    if finish in UNUSABLE_FINISHES:
        raise _Unusable(f"the answer was withheld (finish_reason {finish})")
    if not isinstance(content, str) or not content.strip():
        raise _Unusable(f"the answer is empty (finish_reason {finish[:20]})")
    model = body.get("model")
    is_name = names_models and isinstance(model, str) and 0 < len(model) <= MODEL_NAME_CHARS
    return Completion(
        text=storable(content),
        model=storable(str(model)) if is_name else target.model,
        finish_reason=finish,
        usage=_usage(body.get("usage")),
    )


def _usage(fields: Any) -> Usage | None:
    match fields:
        case {"prompt_tokens": int(prompt), "completion_tokens": int(completion)} if (
            min(prompt, completion) >= 0 and max(prompt, completion) <= MAX_TOKENS_BILLED
        ):
            return Usage(prompt, completion)
    return None
