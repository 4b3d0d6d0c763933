"""An event loop that a test turns round by round, on real Redis connections."""

import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class TurnedLoop:
    """What `webapp.link` and `webapp.express` need of a server. Slow work is kept until the test has it done."""

    def __init__(self) -> None:
        self.poller = selectors.DefaultSelector()
        self.kept: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.replies: list[bytes] = []
        self.is_closing = False

    def apart(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.kept.append((work, then))

    def respond(self, connection: Any, data: bytes) -> None:
        self.replies.append(data)

    def do_kept(self) -> None:
        for _ in range(len(self.kept)):
            work, then = self.kept.popleft()
            try:
                done = work()
            except Exception as error:  # noqa: BLE001 - as the server does
                done = error
            then(done)

    def turn(self, tend: Callable[[], None], until: Callable[[], object], *, does_work: bool = True) -> None:
        """Rounds until `until` holds, which is looked at between any two replies."""
        give_up = time.monotonic() + 10
        while not until():
            assert time.monotonic() < give_up
            if does_work:
                self.do_kept()
            tend()
            for key, _ in self.poller.select(0.01):
                key.data(key.fileobj)
