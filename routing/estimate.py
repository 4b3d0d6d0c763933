"""How many tokens a prompt may take, before a provider has counted them."""

from routing.query import Query

ASCII_PER_TOKEN = 3  # English has four or five characters a token; code, numbers and rare words have fewer
BYTES_PER_TOKEN = 2  # of other scripts' UTF-8: about one token for a Cyrillic letter, two for an emoji
TEMPLATE_TOKENS = 80  # what a chat template adds: gpt-oss's own preamble is some 70


def estimate_prompt_tokens(query: Query) -> int:
    """An estimate that is rather too high: it is for reserving, never for charging."""
    text = query.text + (query.system or "")
    length = len(text.encode("utf-8", "replace"))
    plain = sum(map(str.isascii, text)) if length > len(text) else length
    return TEMPLATE_TOKENS + -(-plain // ASCII_PER_TOKEN) + -(-(length - plain) // BYTES_PER_TOKEN)
