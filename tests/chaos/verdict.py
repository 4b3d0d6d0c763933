"""Counting, once the dust has settled: what was asked, what became of it, and which requirement is violated."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.books import Books
from tests.chaos.load import JOB_DEADLINE_S, SLACK_S, Load, Look, Promise, Seen
from tests.chaos.mix import Question

ENDED = ("completed", "failed", "cancelled", "expired", "dead")


@dataclass
class Figures:
    """One line of the table. Times in seconds; `recovery_s` is None where no normal answer came after the fault."""

    scenario: str = ""
    asked: int = 0
    answered: int = 0
    promised: int = 0
    degraded: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    broken: int = 0
    jobs: int = 0
    ended: int = 0
    lost: int = 0
    mixed_up: int = 0
    charged_twice: int = 0
    extra_calls: int = 0
    missing_in_sql: int = 0
    missing_in_kafka: int = 0
    repeated_in_kafka: int = 0
    hanging: int = 0
    longest_s: float = 0.0
    recovery_s: float | None = None
    restarts: int = 0
    violations: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def add_bugs(self, lines: Sequence[str]) -> None:
        """Count what the service's logs call bugs."""
        self.broken += len(lines)
        self.examples += [f"bug: {line[:1000]}" for line in lines]


def count(load: Load, books: Books, *, fault_s: float, provider_calls: int, uncounted: int) -> Figures:
    """The figures of one run. `uncounted` are hits that the service itself says it could not record."""
    figures = Figures()
    _count_replies(figures, load.seen)
    _count_looks(figures, load.looks, fault_s)
    _count_jobs(figures, load.seen, load.promises, books)
    _count_hanging(figures, load.seen, books, fault_s)
    _count_records(figures, load.seen, books, uncounted)
    calls = sum(1 for row in books.attempts if row.provider)
    figures.extra_calls = max(0, provider_calls - calls)
    return figures


def charged_twice(books: Books) -> set[str]:
    """Jobs that more than one query was charged for, and requests that became more than one query."""
    paying = Counter(row.job_id for row in books.queries if row.cost_usd > 0)
    used = Counter(row.key for row in books.events if row.type == "usage.recorded" and row.payload["cost_usd"] > 0)
    asked = Counter(row.request_id for row in books.queries)
    costs: defaultdict[str, float] = defaultdict(float)
    for row in books.attempts:
        costs[row.job_id] = max(costs[row.job_id], row.cost_usd)
    dearer = {row.job_id for row in books.queries if row.cost_usd > costs[row.job_id] * 1.001}
    return {name for counter in (paying, used, asked) for name, number in counter.items() if number > 1} | dearer


def is_mixed_up(question: Question, body: object) -> bool:
    """Whether a 200 body answers another question than the one that was asked."""
    answer = body if isinstance(body, dict) else {}
    return answer.get("response") != question.answer or answer.get("query") != question.text


def recovery(seen: Iterable[Seen], fault_ended: float, tiers: Iterable[str]) -> float | None:
    """Seconds from the fault's end until each of the tiers has given a normal answer to a query asked after it."""
    first: dict[str, float] = {}
    for s in seen:
        if s.is_normal and s.started >= fault_ended:
            tier = s.body["complexity"]
            first[tier] = min(first.get(tier, s.ended), s.ended)
    return max(first.values()) - fault_ended if first.keys() >= set(tiers) else None


def judge(figures: Figures, *, may_cut: bool, may_refuse: bool, ailing: Sequence[str]) -> list[str]:
    """What is required and does not hold."""
    zeros = ("lost", "mixed_up", "charged_twice", "missing_in_sql", "missing_in_kafka", "hanging", "broken")
    found = [f"{name} {getattr(figures, name)}" for name in zeros if getattr(figures, name)]
    if figures.cut and not may_cut:
        found.append(f"cut {figures.cut}")
    if figures.refused and not may_refuse:
        found.append("refused")
    if not figures.answered:
        found.append("nothing answered")
    if figures.recovery_s is None:
        found.append("no recovery")
    return found + [f"{part} not well" for part in ailing]


def _count_replies(figures: Figures, seen: Sequence[Seen]) -> None:
    figures.asked = len(seen)
    figures.answered = sum(s.is_answered for s in seen)
    figures.degraded = sum(s.is_answered and s.is_degraded for s in seen)
    figures.promised = sum(s.status == 202 for s in seen)
    figures.refused = dict(Counter(f"{s.status} {s.code}" for s in seen if s.is_refused))
    figures.cut = sum(s.status == 0 for s in seen)
    broken = [s for s in seen if s.status not in (0, 200, 202) and not s.is_refused]
    figures.broken = len(broken)
    figures.longest_s = max((s.seconds for s in seen), default=0.0)
    figures.examples += [f"broken: {s.status} {s.code} {s.request_id}" for s in broken]
    figures.examples += [f"cut: {s.error} {s.request_id} after {s.seconds:.1f} s" for s in seen if s.status == 0]
    mixed = [s for s in seen if s.is_answered and is_mixed_up(s.question, s.body)]
    figures.mixed_up = len(mixed)
    figures.examples += [f"mixed up: {s.request_id} {s.question.text}" for s in mixed]


def _count_looks(figures: Figures, looks: Sequence[Look], fault_s: float) -> None:
    """The operator's routes say 200 or 503, and within a time."""
    broken = [look for look in looks if look.status not in (0, 200, 503)]
    slow = [look for look in looks if look.seconds > SLACK_S + fault_s]
    figures.broken += len(broken)
    figures.hanging += len(slow)
    figures.examples += [f"broken: {look.status} {look.path}" for look in broken]
    figures.examples += [f"hanging: {look.path} {look.seconds:.1f} s" for look in slow]


def _count_records(figures: Figures, seen: Sequence[Seen], books: Books, uncounted: int) -> None:
    twice, missing = charged_twice(books), books.missing_events()
    unrecorded = {s.body["id"] for s in seen if s.is_answered} - {row.id for row in books.queries}
    figures.charged_twice = len(twice)
    figures.missing_in_sql = len(missing) + max(0, len(unrecorded) - uncounted) + len(books.unknown_in_kafka())
    figures.missing_in_kafka = len(books.missing_in_kafka())
    figures.repeated_in_kafka = sum(books.kafka.values()) - len(books.kafka)
    figures.examples += [f"charged twice: {job}" for job in sorted(twice)]
    figures.examples += [f"event missing: {event}" for event in sorted(missing)]
    figures.examples += [f"answered and not recorded: {query}" for query in sorted(unrecorded)]


def _count_jobs(figures: Figures, seen: Sequence[Seen], promises: Sequence[Promise], books: Books) -> None:
    """Accepted is what a 202 named, what was answered by a job, and what the books say was accepted."""
    known = {row.id for row in books.queries if row.cache != "HIT"}
    named = {p.id for p in promises} | {s.body["id"] for s in seen if s.is_answered and s.cache != "HIT"}
    lost = {p.id for p in promises if p.status not in ENDED} | books.open_ids
    figures.jobs = len(known | named)
    figures.lost = len(lost)
    figures.ended = figures.jobs - len(lost)
    wrong = [p for p in promises if p.status == "completed" and is_mixed_up(p.question, p.body.get("result"))]
    figures.mixed_up += len(wrong)
    said = {row.id: s for row in books.queries for s in seen if s.request_id == row.request_id}
    figures.examples += [f"lost: {job}, whose caller got {_said(said.get(job))}" for job in sorted(lost)]
    figures.examples += [f"mixed up: job {p.id} {p.question.text}" for p in wrong]


def _count_hanging(figures: Figures, seen: Sequence[Seen], books: Books, fault_s: float) -> None:
    """Requests over their own limit, and jobs that ended long after their deadline. A fault may delay an end."""
    slow = {s.request_id for s in seen if s.seconds > s.limit_s}
    deadlines = {s.request_id: float(s.question.body.get("deadline_seconds", JOB_DEADLINE_S)) for s in seen}
    for row in books.queries:
        if row.ended_at is None or row.request_id not in deadlines:
            continue
        took_s = (row.ended_at - row.created_at).total_seconds()
        if took_s > deadlines[row.request_id] + fault_s + SLACK_S:
            slow.add(row.request_id)
    figures.hanging += len(slow)
    figures.examples += [f"hanging: {request}" for request in sorted(slow)]


def _said(seen: Seen | None) -> str:
    return f"{seen.status} {seen.code or seen.cache} ({seen.request_id})" if seen else "nothing"
