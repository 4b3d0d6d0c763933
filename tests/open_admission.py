"""An admission in memory that grants everything, refuses by a script, and keeps what it is told."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from routing.lane import CallReport, Grant, Lane, Wait
from routing.query import Target


@dataclass
class OpenAdmission:
    """`waits` are said one by one before anything is granted; lanes of `closed` targets are passed over."""

    waits: deque[Wait] = field(default_factory=deque)
    closed: dict[Target, Wait] = field(default_factory=dict)
    gone_targets: set[Target] = field(default_factory=set)
    asked: list[tuple[tuple[Lane, ...], int]] = field(default_factory=list)
    granted: list[Grant] = field(default_factory=list)
    settled: list[tuple[Grant, CallReport]] = field(default_factory=list)

    def admit(self, lanes: Sequence[Lane], tokens: int) -> Grant | Wait:
        self.asked.append((tuple(lanes), tokens))
        if self.waits:
            return self.waits.popleft()
        free = [lane for lane in lanes if lane.target not in self.closed]
        if not free:
            return min((self.closed[lane.target] for lane in lanes), key=lambda wait: wait.seconds)
        self.granted.append(Grant(free[0], f"ticket-{len(self.granted)}"))
        return self.granted[-1]

    def settle(self, grant: Grant, report: CallReport) -> None:
        self.settled.append((grant, report))

    def gone(self, targets: Sequence[Target]) -> frozenset[Target]:
        return frozenset(targets) & self.gone_targets

    @property
    def reports(self) -> dict[Target, CallReport]:
        """The last report of each target."""
        return {grant.lane.target: report for grant, report in self.settled}

    @property
    def is_settled(self) -> bool:
        """Whether every grant was given back, once."""
        return sorted(g.ticket for g in self.granted) == sorted(g.ticket for g, _ in self.settled)
