"""The deadline thread: rings in order and in time, not when cancelled."""

import queue
import threading
import time

import pytest

from providers.watchdog import Watchdog


def test_it_rings_at_the_deadline_and_not_before() -> None:
    rung: queue.Queue[float] = queue.Queue()
    deadline = time.monotonic() + 0.1

    Watchdog().watch(deadline, lambda: rung.put(time.monotonic()))

    assert 0 <= rung.get(timeout=5) - deadline < 2


def test_it_rings_in_the_order_of_the_deadlines_not_of_the_calls() -> None:
    rung: queue.Queue[str] = queue.Queue()
    watchdog, now = Watchdog(), time.monotonic()

    watchdog.watch(now + 0.2, lambda: rung.put("late"))
    watchdog.watch(now + 0.05, lambda: rung.put("early"))

    assert [rung.get(timeout=2), rung.get(timeout=2)] == ["early", "late"]


def test_it_does_not_ring_a_cancelled_alarm() -> None:
    rung: queue.Queue[str] = queue.Queue()
    watchdog, now = Watchdog(), time.monotonic()

    watchdog.watch(now + 0.05, lambda: rung.put("cancelled")).cancel()
    watchdog.watch(now + 0.1, lambda: rung.put("kept"))

    assert rung.get(timeout=2) == "kept"


def test_it_rings_at_once_when_the_deadline_has_passed() -> None:
    rung = threading.Event()

    Watchdog().watch(time.monotonic() - 1, rung.set)

    assert rung.wait(2)


def test_it_keeps_ringing_after_the_heap_ran_empty() -> None:
    watchdog = Watchdog()
    for _ in range(3):
        rung = threading.Event()
        watchdog.watch(time.monotonic() + 0.01, rung.set)
        assert rung.wait(2)


def test_it_starts_no_thread_before_it_is_needed() -> None:
    before = threading.active_count()

    watchdog = Watchdog()

    assert threading.active_count() == before
    watchdog.watch(time.monotonic() + 60, lambda: None).cancel()
    watchdog.watch(time.monotonic() + 60, lambda: None).cancel()
    assert threading.active_count() == before + 1


@pytest.mark.parametrize("callers", [8])
def test_it_serves_many_threads_at_once(callers: int) -> None:
    rung: queue.Queue[int] = queue.Queue()
    watchdog = Watchdog()

    def set_alarms(number: int) -> None:
        for step in range(50):
            watchdog.watch(time.monotonic() + step / 1000, lambda: rung.put(number))

    threads = [threading.Thread(target=set_alarms, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()

    assert len([rung.get(timeout=2) for _ in range(callers * 50)]) == callers * 50
