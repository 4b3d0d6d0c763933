"""What a job's ending puts on its key's account."""

from routing.errors import AllTargetsFailed, CallAborted, TargetTimedOut
from routing.query import Attempt, Target, Usage
from tasks.ending import charges, failed_ending

TARGET = Target("groq", "m")


def attempt(**changes: object) -> Attempt:
    return Attempt("groq", "m", 1, 5.0, **{"outcome": "timed_out", **changes})  # type: ignore[arg-type]


def test_tokens_that_may_have_been_billed_are_charged_too() -> None:
    tries = [attempt(billing="unknown", possible_tokens=700), attempt(billing="billed", usage=Usage(3, 4))]

    assert charges([one.as_dict() for one in tries])["charge_tokens"] == 707
    ending = failed_ending(AllTargetsFailed(tries, TargetTimedOut(TARGET, "late")), "simple", {"score": 0, "words": 1})
    assert ending.charge_tokens == 707


def test_an_attempt_recorded_before_its_tokens_were_guessed_is_charged_for_what_it_names() -> None:
    old = attempt(usage=Usage(3, 4)).as_dict()
    del old["possible_tokens"]

    assert charges([old])["charge_tokens"] == 7


def test_a_run_that_was_aborted_for_being_overdue_has_expired() -> None:
    error = AllTargetsFailed([Attempt("groq", "m", 1, 5.0, "aborted")], CallAborted(Target("groq", "m"), "unwanted"))

    ending = failed_ending(error, "simple", {"score": 0, "words": 1})
    assert (ending.status, ending.is_dead_letter, len(ending.attempts)) == ("expired", False, 1)
