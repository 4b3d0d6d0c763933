"""Reads a chat completion out of a reply, trusting none of it."""

import json
from typing import Any

from providers.call import Reply
from routing.errors import Aftermath, CallAborted, ReplyUnusable
from routing.lane import RateLimits
from routing.query import Completion, Target, Usage

MODEL_NAME_CHARS = 128  # what the analytics tables hold
MAX_TOKENS_BILLED = 2**31 - 1  # likewise; more is no count of tokens

FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",  # Together
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
"""Every word that ends an answer, in OpenAI's. Whatever else a provider says, it is not that the answer is whole."""


def read_completion(
    target: Target, reply: Reply, limits: RateLimits | None = None, *, names_models: bool = True
) -> Completion:
    """The completion in a successful reply. Raises ReplyUnusable where there is none to be read.

    One that names its usage is charged all the same; of the others nobody knows.
    """
    usage = None
    try:
        body = _body(reply)
        usage = _usage(body.get("usage"))
        return _completion(target, body, usage, names_models)
    except _Unusable as fault:
        aftermath = Aftermath("billed" if usage else "unknown", usage, limits)
        raise ReplyUnusable(
            target, str(fault), status=reply.status, aftermath=aftermath, standing=fault.standing
        ) from None


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

    standing = ReplyUnusable.code


class _NoAnswer(_Unusable):
    """The reply is well made, but the model gave no answer: a query can bring that about, so no lane answers for it."""

    standing = CallAborted.code


def _body(reply: Reply) -> dict[str, Any]:
    kind = reply.headers.get("Content-Type", "")
    if "json" not in kind.lower():
        raise _Unusable(f"the reply is not JSON but {storable(kind[:80]) or 'of no type'}")
    try:
        body = parse_json(reply.body)
    except ValueError:
        raise _Unusable("the reply is not valid JSON") from None
    if not isinstance(body, dict):
        raise _Unusable("the reply is not an object")
    return body


def _completion(target: Target, body: dict[str, Any], usage: Usage | None, names_models: bool) -> Completion:
    match body.get("choices"):
        case [{"message": dict(message)} as choice, *_]:
            text, finish = _text(message), _finish(choice.get("finish_reason"))
        case _:
            raise _Unusable("the reply has no choices")
    if not text.strip():
        raise _NoAnswer(f"the answer is empty (finish_reason {finish})")
    model = body.get("model")
    is_name = names_models and isinstance(model, str) and 0 < len(model) <= MODEL_NAME_CHARS
    return Completion(
        text=storable(text),
        model=storable(str(model)) if is_name else target.model,
        finish_reason=finish,
        usage=usage,
    )


def _text(message: dict[str, Any]) -> str:
    if message.get("refusal"):
        raise _NoAnswer("the model refused to answer")
    content = message.get("content")
    if not isinstance(content, str | None):
        raise _Unusable("the answer is no text")
    return content or ""


def _finish(said: Any) -> str:
    """Why the answer ends, in OpenAI's words; servers that do not say are taken to have ended it."""
    if said is None:
        return "stop"
    if isinstance(said, str) and said in FINISH_REASONS:
        return FINISH_REASONS[said]
    raise _NoAnswer(f"the answer was withheld or is not whole (finish_reason {storable(str(said))[:20]})")


def _usage(fields: Any) -> Usage | None:
    match fields:
        case {"prompt_tokens": int(prompt), "completion_tokens": int(completion)} if (
            min(prompt, completion) >= 0 and max(prompt, completion) <= MAX_TOKENS_BILLED
        ):
            return Usage(prompt, completion)
    return None
