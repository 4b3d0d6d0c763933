"""What this process knows of API keys, so that a request seldom has to ask the database."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from storage.api_key import ApiKey

MAX_KEYS = 10_000  # known ones, and as many unknown ones
MAX_AWAY_S = 15 * 60  # how long a key is believed in while the database is away
UNKNOWN_S = 5  # how long an id that nobody has stays unknown without a new look
ASK_AGAIN_S = 5  # how long the database is left alone after it has not answered
OVERLAP_S = 3  # how long the others still believe what is known while one asks anew
MAX_UNKNOWN_QUESTIONS = 4  # at a time: guesses must not take every connection
WAIT_FOR_TURN_S = 2


class KeysUnavailable(Exception):
    """The database does not answer, and nothing that is recent enough is known of the key."""


@dataclass(frozen=True, slots=True)
class _Known:
    key: ApiKey
    checked_at: float


class KeyCache:
    """Keys by id, each looked up again after `fresh_s`. Times are those of `monotonic`, which no clock jump moves."""

    def __init__(
        self, load: Callable[[str], ApiKey | None], fresh_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._load, self._fresh_s, self._monotonic = load, fresh_s, monotonic
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        # Apart from the known ones, or guesses would push those out.
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._asking: set[str] = set()
        self._turns = threading.BoundedSemaphore(MAX_UNKNOWN_QUESTIONS)
        self._away_until = float("-inf")

    def find(self, key_id: str) -> ApiKey | None:
        """The key as it was at most `fresh_s` ago. While the database is away, as it was last seen.

        Raises KeysUnavailable.
        """
        now = self._monotonic()
        with self._lock:
            known = self._known.get(key_id)
            if known:
                self._known.move_to_end(key_id)
            elif self._unknown.get(key_id, now) > now:
                return None
        if known and now - known.checked_at < self._fresh_s:
            return known.key
        if now < self._away_until:
            return self._make_do(known, now)
        return self._refresh(key_id, known, now) if known else self._ask_in_turn(key_id, now)

    def known(self, key_id: str) -> ApiKey:
        """The key where it was looked up in time; never asks the database. Raises LookupError."""
        with self._lock:
            known = self._known[key_id]
        if self._monotonic() - known.checked_at >= self._fresh_s:
            raise LookupError(key_id)
        return known.key

    def forget(self, key_id: str) -> None:
        """Look the key up again at its next use: it has just been changed here."""
        with self._lock:
            self._known.pop(key_id, None)
            self._unknown.pop(key_id, None)

    def _refresh(self, key_id: str, known: _Known, now: float) -> ApiKey | None:
        with self._lock:
            is_asked_already = key_id in self._asking
            # A key that was not used for long may have been revoked long ago: then everyone waits.
            if is_asked_already and now - known.checked_at < self._fresh_s + OVERLAP_S:
                return known.key
            self._asking.add(key_id)
        try:
            return self._ask(key_id, known, now)
        finally:
            with self._lock:
                self._asking.discard(key_id)

    def _ask_in_turn(self, key_id: str, now: float) -> ApiKey | None:
        if not self._turns.acquire(timeout=WAIT_FOR_TURN_S):
            raise KeysUnavailable
        try:
            return self._ask(key_id, None, now)
        finally:
            self._turns.release()

    def _ask(self, key_id: str, known: _Known | None, now: float) -> ApiKey | None:
        try:
            key = self._load(key_id)
        except SQLAlchemyError:
            self._away_until = self._monotonic() + ASK_AGAIN_S
            return self._make_do(known, now)
        with self._lock:
            # As of before the question: what was changed while it was answered may not be in the answer.
            if key:
                _put(self._known, key_id, _Known(key, now))
            else:
                self._known.pop(key_id, None)
                _put(self._unknown, key_id, now + min(UNKNOWN_S, self._fresh_s))
        return key

    def _make_do(self, known: _Known | None, now: float) -> ApiKey:
        if known is None or now - known.checked_at > MAX_AWAY_S:
            raise KeysUnavailable
        return known.key


def _put(entries: OrderedDict[str, Any], key_id: str, value: object) -> None:
    entries[key_id] = value
    entries.move_to_end(key_id)
    while len(entries) > MAX_KEYS:
        entries.popitem(last=False)
