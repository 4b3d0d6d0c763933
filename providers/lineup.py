"""The lanes that one walk may still call, in the order to try them: what fails leaves the line, or waits in it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from routing.catalogue import Catalogue
from routing.errors import CallAborted, KeyRejected, ModelGone, ProviderError, TargetThrottled
from routing.lane import Lane, Wait
from routing.query import Target
from routing.tier import Tier

THROTTLE_PAUSE_S = 5.0
LONGEST_FORCED_PAUSE_S = 60.0

Gone = Callable[[Sequence[Target]], frozenset[Target]]


class Lineup:
    """One lane for each key of each target; `now` is `time.monotonic()` seconds throughout."""

    def __init__(self, targets: Sequence[Target], key_ids: Mapping[str, Sequence[str]], catalogue: Catalogue) -> None:
        self._key_ids = {provider: list(ids) for provider, ids in key_ids.items()}
        self._catalogue = catalogue
        self._lanes = [lane for target in targets for lane in self._lanes_of(target)]
        self._dropped: set[Target] = set()
        self._throttles: Counter[Lane] = Counter()
        self._paused_until: dict[Lane, float] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def first(self) -> Lane:
        return self._lanes[0]

    def ready(self, now: float) -> list[Lane]:
        """The lanes that this walk was not told to leave alone for now."""
        return [lane for lane in self._lanes if self._paused_until.get(lane, 0.0) <= now]

    def beside(self, target: Target, now: float) -> list[Lane]:
        """The ready lanes of other targets."""
        return [lane for lane in self.ready(now) if lane.target != target]

    def wait(self, now: float) -> Wait | None:
        """Until the first paused lane is ready again; None where none is paused."""
        pauses = [until - now for lane in self._lanes if (until := self._paused_until.get(lane, 0.0)) > now]
        return Wait(min(pauses), "paused") if pauses else None

    def learn(self, lane: Lane, error: ProviderError, now: float) -> None:
        """Takes out of the line what can help this walk no more; a throttled lane stays, for later."""
        match error:
            case CallAborted():
                pass
            case TargetThrottled():
                self._pause(lane, error.retry_after, now)
            case KeyRejected():
                self._drop_key(lane)
            case ModelGone():
                self._drop(lane.target)
                self._put_successor_first(lane.target)
            case _:  # another key does not help a model that is slow, cut off or at its capacity
                self._drop(lane.target)

    def _pause(self, lane: Lane, seconds: float | None, now: float) -> None:
        """As long as was said, but longer each time: a provider that says 0 for ever must not be called for ever."""
        self._throttles[lane] += 1
        least = min(LONGEST_FORCED_PAUSE_S, 2.0 ** (self._throttles[lane] - 1))
        self._paused_until[lane] = now + max(THROTTLE_PAUSE_S if seconds is None else seconds, least)

    def _drop(self, target: Target) -> None:
        self._dropped.add(target)
        self._lanes = [lane for lane in self._lanes if lane.target != target]

    def _drop_key(self, rejected: Lane) -> None:
        provider = rejected.target.provider
        self._key_ids[provider] = [key for key in self._key_ids[provider] if key != rejected.key_id]
        self._lanes = [
            lane for lane in self._lanes if (lane.target.provider, lane.key_id) != (provider, rejected.key_id)
        ]

    def _put_successor_first(self, target: Target) -> None:
        successor = self._catalogue.successor(target)
        if successor is not None and successor not in self._dropped:
            others = [lane for lane in self._lanes if lane.target != successor]
            self._lanes = [*self._lanes_of(successor), *others]

    def _lanes_of(self, target: Target) -> list[Lane]:
        return [Lane(target, key) for key in self._key_ids[target.provider]]


def choose_targets(tier: Tier, providers: Mapping[str, object], catalogue: Catalogue, gone: Gone) -> list[Target]:
    """The tier's targets at these providers; a model that is gone stands back for its successor, or last."""
    families = [_family(target, catalogue) for target in tier.targets if target.provider in providers]
    away = gone([target for family in families for target in family])
    chosen = [next((target for target in family if target not in away), family[0]) for family in families]
    return sorted(dict.fromkeys(chosen), key=away.__contains__)


def _family(target: Target, catalogue: Catalogue) -> list[Target]:
    """The target, its successor, that one's successor and so on."""
    family = [target]
    while (successor := catalogue.successor(family[-1])) and successor not in family:
        family.append(successor)
    return family
