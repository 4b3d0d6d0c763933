"""Several keys of one provider: what stands for each where the key itself must not be, and how to hide them."""

import re
from collections.abc import Sequence
from hashlib import sha256

NO_KEY = "-"
ID_HEX_DIGITS = 8
PREFIX_CHARS = 8  # a provider may quote only the beginning of a key


def key_id(key: str) -> str:
    """The beginning of the key's SHA-256, which tells keys apart and gives none away."""
    return sha256(key.encode()).hexdigest()[:ID_HEX_DIGITS] if key else NO_KEY


def without_keys(text: str, keys: Sequence[str]) -> str:
    """The text with each key, or what begins like one, replaced."""
    beginnings = "|".join(re.escape(key[:PREFIX_CHARS]) for key in keys if key)
    return re.sub(rf"(?:{beginnings})\S*", "[key]", text) if beginnings else text
