"""Stages run by threads: order, back-pressure, failures, and times that show the bottleneck."""

import random
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from clipbatch.stages.flow import Flow, Stage, bottleneck

JOIN_S = 30


class BrokenError(Exception):
    """What a stage or a source of these tests raises."""


def _fumble(item: int) -> int:
    """Work of a random length, so that items overtake one another."""
    time.sleep(random.random() / 500)
    return item


def _join(*stages: str) -> None:
    """Wait for all threads of `stages`; one that never ends fails the test."""
    for thread in threading.enumerate():
        if thread.name.rpartition("-")[0] in stages:
            thread.join(JOIN_S)
            assert not thread.is_alive(), thread.name


def _drain(flow: Flow, got: list[int]) -> None:
    for item in flow:
        got.append(item)


@pytest.mark.parametrize("stages", [[(1, 1)], [(8, 1)], [(1, 0), (4, 0)], [(3, 2), (8, 1), (1, 5), (4, 2)]])
def test_results_leave_in_the_order_in_which_items_came(stages: Sequence[tuple[int, int]]) -> None:
    made = [
        Stage(name=f"order{number}", work=_fumble, threads=threads, depth=depth)
        for number, (threads, depth) in enumerate(stages)
    ]
    assert list(Flow(range(300), made)) == list(range(300))
    _join(*(stage.name for stage in made))


def test_every_stage_sees_every_item_once_and_gets_what_the_stage_before_made() -> None:
    seen: list[int] = []

    def keep(item: int) -> int:
        seen.append(item)
        return item

    stages = [
        Stage(name="double", work=lambda item: 2 * item, threads=4),
        Stage(name="keep", work=keep),
        Stage(name="text", work=str, threads=2),
    ]
    assert list(Flow(iter(range(50)), stages)) == [str(2 * number) for number in range(50)]
    assert seen == [2 * number for number in range(50)]


def test_as_many_items_are_worked_on_at_once_as_a_stage_has_threads() -> None:
    together = threading.Barrier(4)

    def meet(item: int) -> int:
        together.wait(JOIN_S)  # breaks, and raises, unless four come at the same time
        return item

    assert list(Flow(range(12), [Stage(name="meet", work=meet, threads=4, depth=1)])) == list(range(12))


def _pulled(limit: threading.Semaphore, counts: dict[str, int], length: int) -> Iterator[int]:
    for number in range(length):
        counts["pulled"] += 1
        counts["ahead"] = max(counts["ahead"], counts["pulled"] - counts["taken"])
        limit.release()
        yield number


@pytest.mark.parametrize("stages", [[(1, 0)], [(1, 2)], [(4, 2)], [(3, 1), (1, 0), (2, 3)]])
def test_the_source_is_pulled_ahead_by_no_more_than_threads_and_depth(stages: Sequence[tuple[int, int]]) -> None:
    made = [
        Stage(name=f"ahead{number}", work=_fumble, threads=threads, depth=depth)
        for number, (threads, depth) in enumerate(stages)
    ]
    # Each stage holds threads + depth results in their places, and one item more for which there is no place yet.
    most = sum(threads + depth + 1 for threads, depth in stages)
    counts, pulls = {"pulled": 0, "taken": 0, "ahead": 0}, threading.Semaphore(0)
    flow = Flow(_pulled(pulls, counts, 10 * most), made)
    for _ in range(most):  # with nobody taking results it runs ahead that far
        assert pulls.acquire(timeout=JOIN_S)
    assert not pulls.acquire(timeout=0.3)  # and no further
    for item in flow:
        assert item == counts["taken"]
        counts["taken"] += 1
    assert counts["pulled"] == 10 * most
    assert counts["ahead"] <= most + 1  # what is being taken is out of the queues, and not counted yet


@pytest.mark.parametrize("kind", [BrokenError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("number", [0, 1, 37, 99])
def test_a_failing_stage_gives_what_came_before_then_its_error_with_its_name_and_all_threads_end(
    number: int, kind: type[BaseException]
) -> None:
    error, got = kind("disk gone"), list[int]()

    def fail(item: int) -> int:
        if item == number:
            raise error
        return item

    stages = [
        Stage(name="before", work=_fumble, threads=3),
        Stage(name="failing", work=fail, threads=2),
        Stage(name="after", work=_fumble, threads=2),
    ]
    with pytest.raises(kind) as caught:
        _drain(Flow(range(100), stages), got)
    assert caught.value is error
    assert got == list(range(number))
    assert error.__notes__ == ["in stage failing"]
    _join("before", "failing", "after")


def test_of_several_failures_the_first_in_order_is_raised_however_late_it_comes() -> None:
    first_may_fail = threading.Event()

    def work(item: int) -> int:
        if item == 5:
            first_may_fail.set()
            raise BrokenError("the later one")
        if item == 3:
            assert first_may_fail.wait(JOIN_S)
            raise BrokenError("the earlier one")
        return item

    flow = Flow(range(100), [Stage(name="several", work=work, threads=4, depth=4)])
    with pytest.raises(BrokenError, match="the earlier one"):
        list(flow)
    _join("several")


@pytest.mark.parametrize("number", [0, 1, 50])
def test_a_failing_source_gives_what_came_before_then_its_error_with_no_stage_named(number: int) -> None:
    error = BrokenError("listing")

    def source() -> Iterator[int]:
        yield from range(number)
        raise error

    got: list[int] = []
    stages = [Stage(name="one", work=_fumble, threads=3), Stage(name="two", work=_fumble)]
    with pytest.raises(BrokenError) as caught:
        _drain(Flow(source(), stages), got)
    assert caught.value is error
    assert got == list(range(number))
    assert getattr(error, "__notes__", []) == []
    _join("one", "two")


def test_ending_the_iteration_early_ends_all_threads() -> None:
    counts, pulls = {"pulled": 0, "taken": 0, "ahead": 0}, threading.Semaphore(0)
    flow = iter(Flow(_pulled(pulls, counts, 10**9), [Stage(name="early", work=_fumble, threads=4)]))
    assert [next(flow) for _ in range(5)] == [0, 1, 2, 3, 4]
    flow.close()  # type: ignore[attr-defined]  # as `break` does
    _join("early")
    assert counts["pulled"] <= 5 + 4 + 2 + 1


@pytest.mark.parametrize("stages", [0, 1, 3])
def test_an_empty_source_has_no_results(stages: int) -> None:
    made = [Stage(name=f"empty{number}", work=_fumble, threads=2) for number in range(stages)]
    flow = Flow([], made)
    assert list(flow) == []
    _join(*(stage.name for stage in made))
    assert [times["busy_s"] for times in flow.times().values()] == [0] * stages
    assert bottleneck({}) == ""


@pytest.mark.parametrize("slow", ["first", "second", "third"])
def test_the_times_add_up_and_name_the_slow_stage(slow: str) -> None:
    items, slow_s = 12, 0.05

    def work(name: str) -> Stage:
        threads = 2 if name == "second" else 1
        return Stage(name=name, work=lambda item: time.sleep(slow_s if name == slow else 0), threads=threads)

    begun = time.perf_counter()
    flow = Flow(range(items), [work(name) for name in ("first", "second", "third")])
    assert list(flow) == [None] * items
    _join("first", "second", "third")
    times, elapsed_s = flow.times(), time.perf_counter() - begun
    assert bottleneck(times) == slow
    assert times[slow]["busy_s"] >= items * slow_s - 0.001  # a sleep is never shorter than asked; 0.001: rounding
    for name, spent in times.items():
        waits_s = spent["starved_s"] + spent["blocked_s"]
        assert spent["threads"] == (2 if name == "second" else 1)
        assert 0 <= spent["load"] <= 1
        assert 0 <= spent["busy_s"] <= elapsed_s * spent["threads"]
        assert waits_s <= elapsed_s + 0.002  # one thread at a time waits for its turn, and the others for that one
    if slow == "first":
        assert times["third"]["starved_s"] > times["first"]["starved_s"]
    if slow == "third":
        assert times["first"]["blocked_s"] > times["third"]["blocked_s"]


def test_work_counts_as_soon_as_its_result_is_out_also_while_another_thread_waits_for_the_source() -> None:
    waiting, more = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        waiting.set()
        assert more.wait(JOIN_S)

    def work(item: int) -> int:
        assert waiting.wait(JOIN_S)
        time.sleep(0.02)
        return item

    flow = Flow(source(), [Stage(name="prompt", work=work, threads=2)])
    results = iter(flow)
    try:
        assert next(results) == 0
        assert flow.times()["prompt"]["busy_s"] >= 0.019
    finally:
        more.set()
        _drain(flow, [])
        _join("prompt")
