"""How many tokens a text may be, without a tokenizer: an estimate on the high side, for limits and budgets."""

from routing.query import Query

BYTES_PER_TOKEN = 3
FRAME_TOKENS = 16


def estimate_prompt_tokens(query: Query) -> int:
    size = len(query.text.encode()) + len((query.system or "").encode())
    return size // BYTES_PER_TOKEN + FRAME_TOKENS
