"""The HTTP contract as Pydantic models: what may come in, and what goes out."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from routing.fingerprint import normalise
from routing.tier import TIER_NAMES
from webapp.problem import ProblemDetails

TierName = Literal["simple", "medium", "complex"]
assert TierName.__args__ == TIER_NAMES  # type: ignore[attr-defined]  # noqa: S101 - two spellings of one list


def _clean_text(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain unpaired surrogates") from None
    return text


def _not_blank(text: str) -> str:
    if not normalise(text):  # what cannot be seen is blank too
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_clean_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CachePolicy(_Strict):
    """How the answer cache is used for this query."""

    mode: Literal["default", "bypass", "refresh", "only"] = Field(
        "default",
        description="`bypass` neither reads nor writes, `refresh` only writes, `only` answers 404 on a miss",
    )
    ttl: int | None = Field(None, ge=1, le=30 * 86400, description="Seconds to keep the answer")


class ClassifyBody(_Strict):
    """A query to be judged, not answered."""

    query: Annotated[Text, AfterValidator(_not_blank)] = Field(examples=["What is machine learning?"])


class QueryBody(ClassifyBody):
    """A query to be answered."""

    tier: TierName | None = Field(None, description="Skip the classifier")
    system: Text | None = Field(None, description="System text for the model")
    max_tokens: int | None = Field(None, ge=1, le=131_072, description="At most; the tier's cap holds too")
    temperature: float | None = Field(None, ge=0, le=2)
    wait_seconds: float | None = Field(None, ge=0, description="0 = asynchronous: 202 and a job to poll")
    deadline_seconds: float | None = Field(None, gt=0, description="Give up after so long")
    start_within_seconds: float | None = Field(None, gt=0, description="Give up if nothing has begun by then")
    priority: Literal["interactive", "batch"] = "interactive"
    cache: CachePolicy | None = None


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Routing(BaseModel):
    """Why the query went to its tier."""

    score: int
    words: int
    signals: list[str]


class QueryAnswer(BaseModel):
    """An answered query."""

    id: str
    query: str
    response: str
    model_used: str
    provider: str
    complexity: TierName
    latency_ms: float
    cached: bool
    cost_estimate: float = Field(description="USD: tokens × list price, the tier's flat price if unknown, 0 on a hit")
    usage: TokenUsage | None
    routing: Routing
    finish_reason: str


class Links(BaseModel):
    self: str
    cancel: str
    events: str


class Timings(BaseModel):
    queued_ms: float | None
    provider_ms: float | None


class JobView(BaseModel):
    """A job: a query that is being answered, or has been."""

    id: str
    object: Literal["job"]
    status: Literal["queued", "running", "completed", "failed", "cancelled", "expired", "dead"]
    tier: TierName | None
    queue_position: int | None = Field(description="1 = next")
    estimated_wait_seconds: float | None = Field(description="From the tier's measured drain rate")
    created_at: str | None
    expires_at: str | None = Field(description="The job is given up if nothing has answered by then")
    attempts: list[dict[str, Any]]
    timings: Timings
    result: QueryAnswer | None
    error: ProblemDetails | None
    links: Links


class SignalView(BaseModel):
    """One sign of complexity and where it stands in the query."""

    name: str
    points: int
    spans: list[tuple[int, int]] = Field(description="[start, end) in characters")
    texts: list[str]


class TargetView(BaseModel):
    provider: str
    model: str


class ClassifyView(BaseModel):
    """What the router would do with a query, and why."""

    tier: TierName
    score: int
    words: int
    signals: list[SignalView]
    targets: list[TargetView] = Field(description="In the order they would be tried")


class MetricsView(BaseModel):
    """Statistics of the window, and the queues of this moment. USD and ms."""

    window_hours: float
    since: str
    queries: dict[str, int] = Field(description="total, completed, failed, open and other statuses")
    cache: dict[str, float | None] = Field(description="hits, misses, coalesced, bypassed, hit_rate")
    tiers: dict[str, Any]
    providers: dict[str, Any]
    cost: dict[str, Any] = Field(description="spent, baseline and saved, and what the baseline is")
    unpublished_events: int | None = Field(description="Events that Kafka has not confirmed; for operators")
    queues: dict[str, dict[str, int]] | None = Field(description="null while Redis is away")
    recorder: dict[str, Any] | None
    unrecorded_hits: int | None


class DeadLetterQuery(_Strict):
    """Which dead letters."""

    model_config = ConfigDict(extra="forbid", strict=False)
    tenant: str | None = Field(None, max_length=64, description="For operators; others see their own tenant's only")
    tier: TierName | None = None
    code: str | None = Field(None, max_length=64, description="Why they failed: a code of our problems")
    before: int | None = Field(None, ge=0, le=2**53, description="Ended before this Unix time in ms: the next page")
    limit: int = Field(50, ge=1, le=1000)


class ReplayBody(DeadLetterQuery):
    """Which dead letters to run once more. (In JSON a number is a number.)"""

    model_config = ConfigDict(extra="forbid", strict=True)


class DeadLetterView(BaseModel):
    """A job that ended without an answer through no fault of its caller."""

    id: str
    tenant: str
    tier: TierName
    priority: Literal["interactive", "batch"]
    status: Literal["failed", "dead"]
    code: str | None
    attempts: list[dict[str, Any]]
    replays: int = Field(description="How often it was replayed and failed again")
    created_at: str
    ended_at: str | None
    ended_at_ms: int | None = Field(description="`before` of the next page")


class DeadLetterList(BaseModel):
    dead_letters: list[DeadLetterView]


class ReplayView(BaseModel):
    replayed: list[str] = Field(description="Ids of the jobs that are queued again")


class JobPath(BaseModel):
    """`{id}` in a job's path."""

    id: str = Field(max_length=64)


class MetricsQuery(_Strict):
    """Window of the metrics."""

    model_config = ConfigDict(extra="forbid", strict=False)
    hours: float = Field(24, gt=0, le=24 * 366, description="How far back")
