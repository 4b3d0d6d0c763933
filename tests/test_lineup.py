"""The lanes of one walk: in which order, what leaves the line, what waits in it."""

import pytest

from providers.lineup import Lineup, choose_targets
from routing.catalogue import load_catalogue
from routing.errors import (
    CallAborted,
    KeyRejected,
    ModelGone,
    PromptTooLong,
    ProviderError,
    ReplyUnusable,
    TargetOverloaded,
    TargetThrottled,
    TargetTimedOut,
    TargetUnreachable,
)
from routing.lane import Lane, Wait
from tests.chain_rig import GROQ, GROQ_SUCCESSOR, LOCAL, SIMPLE, TOGETHER

A, B = Lane(GROQ, "a"), Lane(GROQ, "b")
T, L = Lane(TOGETHER, "t"), Lane(LOCAL, "-")
KEY_IDS = {"groq": ("a", "b"), "together": ("t",), "local": ("-",)}


@pytest.fixture
def lineup() -> Lineup:
    return Lineup([GROQ, TOGETHER, LOCAL], KEY_IDS, load_catalogue())


def throttled(retry_after: float | None) -> TargetThrottled:
    return TargetThrottled(GROQ, "HTTP 429", retry_after=retry_after)


def test_each_target_has_a_lane_for_each_key_of_its_provider(lineup: Lineup) -> None:
    assert lineup.ready(0) == [A, B, T, L]
    assert lineup.beside(GROQ, 0) == [T, L]
    assert (lineup.first, len(lineup), lineup.wait(0)) == (A, 4, None)


@pytest.mark.parametrize("kind", [TargetOverloaded, TargetUnreachable, TargetTimedOut, PromptTooLong, ReplyUnusable])
def test_another_key_does_not_help_a_target_that_failed(lineup: Lineup, kind: type[ProviderError]) -> None:
    lineup.learn(A, kind(GROQ, "failed"), 0)

    assert lineup.ready(0) == [T, L]


def test_a_rejected_key_takes_all_its_lanes_with_it_and_no_other(lineup: Lineup) -> None:
    lineup.learn(A, KeyRejected(GROQ, "HTTP 401"), 0)
    assert lineup.ready(0) == [B, T, L]

    lineup.learn(B, ModelGone(GROQ, "HTTP 404"), 0)
    assert lineup.ready(0) == [Lane(GROQ_SUCCESSOR, "b"), T, L]


def test_the_successor_of_a_model_that_is_gone_comes_next_with_all_keys(lineup: Lineup) -> None:
    lineup.learn(A, ModelGone(GROQ, "HTTP 404"), 0)

    assert lineup.ready(0) == [Lane(GROQ_SUCCESSOR, "a"), Lane(GROQ_SUCCESSOR, "b"), T, L]


def test_a_successor_that_has_failed_already_does_not_come_back() -> None:
    lineup = Lineup([GROQ_SUCCESSOR, GROQ], {"groq": ("a",)}, load_catalogue())
    lineup.learn(Lane(GROQ_SUCCESSOR, "a"), TargetOverloaded(GROQ_SUCCESSOR, "HTTP 503"), 0)
    lineup.learn(A, ModelGone(GROQ, "HTTP 404"), 0)

    assert len(lineup) == 0


def test_a_throttled_lane_comes_back_to_its_place_when_its_pause_is_over(lineup: Lineup) -> None:
    lineup.learn(A, throttled(17), 100)

    assert lineup.ready(116.9) == [B, T, L]
    assert lineup.wait(110) == Wait(7, "paused")
    assert lineup.ready(117) == [A, B, T, L]
    assert lineup.wait(117) is None


@pytest.mark.parametrize(("said", "pauses"), [(0, [1, 2, 4, 8, 16, 32, 60, 60]), (None, [5, 5, 5, 8]), (90, [90, 90])])
def test_who_says_come_back_at_once_again_and_again_is_left_alone_for_longer(
    said: float | None, pauses: list[float]
) -> None:
    lineup = Lineup([GROQ], {"groq": ("a",)}, load_catalogue())
    waits = []
    for _ in pauses:
        lineup.learn(A, throttled(said), 0)
        waits.append(lineup.wait(0))

    assert waits == [Wait(pause, "paused") for pause in pauses]


def test_an_aborted_call_says_nothing_about_its_lane(lineup: Lineup) -> None:
    lineup.learn(A, CallAborted(GROQ, "aborted"), 0)

    assert lineup.ready(0) == [A, B, T, L]


def test_a_model_that_is_gone_stands_back_for_its_successor_or_last() -> None:
    providers = dict.fromkeys(("groq", "together"))

    def choose(*gone: object) -> list[object]:
        return list(choose_targets(SIMPLE, providers, load_catalogue(), lambda asked: frozenset(asked) & set(gone)))

    assert choose() == [GROQ, TOGETHER]
    assert choose(GROQ) == [GROQ_SUCCESSOR, TOGETHER]
    assert choose(GROQ, GROQ_SUCCESSOR) == [TOGETHER, GROQ]
