"""Answers that this process has just looked up: for questions that come in bursts, without a way to Redis and back."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from storage.answer import Answer

MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Recent:
    """`facts` is the line of the stored answer that its record needs."""

    answer: Answer
    facts: bytes
    size: int
    until: float


class RecentAnswers:
    """The latest answers by key, for at most `max_age_s` and in MAX_BYTES; 0 s: none.

    What changes in Redis is told by `evict`. An answer that was looked up before a change and comes in after it is not
    kept: `changes`, read at the look-up, no longer fits.
    """

    def __init__(self, max_age_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._max_age_s, self._monotonic = max_age_s, monotonic
        self._answers: OrderedDict[str, Recent] = OrderedDict()
        self._bytes = 0
        self.changes = 0

    def get(self, key: str) -> Recent | None:
        found = self._answers.get(key)
        if found and found.until < self._monotonic():
            self._drop(key)
            return None
        return found

    def keep(self, key: str, stored: bytes, changes: int) -> Answer:
        """The answer, which is kept unless something has changed since it was looked up."""
        answer = Answer.decode(stored)
        if changes == self.changes and self._max_age_s > 0 and len(stored) * 8 < MAX_BYTES:
            self._drop(key)
            facts = stored[: stored.index(b"\n") + 1]
            self._answers[key] = Recent(answer, facts, len(stored), self._monotonic() + self._max_age_s)
            self._bytes += len(stored)
            while self._bytes > MAX_BYTES:
                self._drop(next(iter(self._answers)))
        return answer

    def evict(self, key: str) -> None:
        """The answer has changed."""
        self.changes += 1
        self._drop(key)

    def clear(self) -> None:
        """Anything may have changed."""
        self.changes += 1
        self._answers.clear()
        self._bytes = 0

    def _drop(self, key: str) -> None:
        if dropped := self._answers.pop(key, None):
            self._bytes -= dropped.size
