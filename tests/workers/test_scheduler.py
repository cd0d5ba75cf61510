"""The scheduler under simulated time: every shard is done, and no worker idles while a shard is unassigned."""

import heapq
import random

import pytest

from clipbatch.workers.scheduler import Assignment, ShardScheduler


def shards(count: int) -> list[Assignment]:
    return [Assignment(shard=shard) for shard in range(count)]


def test_each_shard_is_assigned_once_and_in_order() -> None:
    scheduler = ShardScheduler(shards(3))
    assert [scheduler.next_for(worker, 0.0) for worker in "abab"] == [*shards(3), None]
    assert list(scheduler.assigned("a")) == [0, 2]
    assert [scheduler.done(worker, shard, 1.0) for worker, shard in (("a", 0), ("b", 1))] == [True, True]
    assert not scheduler.complete
    assert scheduler.done("a", 2, 2.0)
    assert scheduler.complete


def test_shards_of_a_dead_worker_come_first_once_they_are_requeued() -> None:
    scheduler = ShardScheduler(shards(4))
    for worker in "aab":
        scheduler.next_for(worker, 0.0)
    lost = scheduler.remove_worker("a")
    assert [task.shard for task in lost] == [0, 1]
    assert scheduler.next_for("b", 1.0) == Assignment(shard=3)
    scheduler.requeue(lost)
    assert [scheduler.next_for("b", 1.0), scheduler.next_for("c", 1.0)] == shards(2)
    assert scheduler.remove_worker("nobody") == []


def test_idle_workers_take_over_the_shards_of_a_stuck_worker() -> None:
    scheduler = ShardScheduler(shards(4))
    assert [scheduler.next_for("stuck", 8.0), scheduler.next_for("stuck", 8.0)] == shards(2)
    for _ in range(2):
        scheduler.next_for("quick", 0.0)
    scheduler.done("quick", 2, 10.0)
    assert scheduler.next_for("quick", 11.0) is None  # it has one in hand
    scheduler.done("quick", 3, 20.0)
    assert scheduler.next_for("quick", 20.0) is None  # 12 s are not yet unusually long
    assert scheduler.next_for("quick", 20.6) == Assignment(shard=0)
    assert scheduler.next_for("other", 20.6) == Assignment(shard=1)  # so has this one been
    assert scheduler.next_for("third", 20.6) is None
    assert scheduler.next_for("third", 33.0) is None  # those who copy have had them for 12.4 s
    assert scheduler.next_for("third", 33.2) == Assignment(shard=0)  # too long again: that copy may be stuck as well
    assert scheduler.done("third", 0, 34.0)
    assert scheduler.done("stuck", 0, 35.0) is False
    assert scheduler.done("other", 1, 40.0)
    assert scheduler.complete
    assert (list(scheduler.assigned("stuck")), list(scheduler.assigned("quick"))) == ([1], [0])
    assert scheduler.remove_worker("stuck") == []


def test_a_shard_with_two_workers_is_not_lost_when_one_of_them_dies() -> None:
    scheduler = ShardScheduler(shards(2))
    scheduler.next_for("a", 0.0)
    scheduler.next_for("b", 0.0)
    scheduler.done("b", 1, 1.0)
    assert scheduler.next_for("b", 9.0) == Assignment(shard=0)
    assert scheduler.remove_worker("a") == []
    assert scheduler.remove_worker("b") == [Assignment(shard=0)]


def test_a_finished_shard_is_skipped_and_does_not_count_in_the_median() -> None:
    scheduler = ShardScheduler(shards(3))
    assert scheduler.next_for("a", 0.0) == Assignment(shard=0)
    scheduler.skip("a", 0)
    scheduler.next_for("a", 0.0)
    scheduler.next_for("b", 0.0)
    scheduler.done("a", 1, 10.0)
    assert scheduler.next_for("a", 11.0) is None  # the median is 10, not 5
    scheduler.done("b", 2, 16.0)
    assert scheduler.complete


def test_shards_can_be_added_and_another_process_may_do_one_that_is_in_progress() -> None:
    scheduler = ShardScheduler(shards(1))
    assert scheduler.next_for("a", 0.0) == Assignment(shard=0)
    assert scheduler.unassigned == 0
    scheduler.add([Assignment(shard=7), Assignment(shard=3), Assignment(shard=4), Assignment(shard=5, again=True)])
    assert scheduler.next_for("a", 1.0) == Assignment(shard=7)
    assert scheduler.in_progress == {0: Assignment(shard=0), 7: Assignment(shard=7)}
    assert scheduler.done_elsewhere({0, 1}) == {0}
    assert (scheduler.is_open(0), list(scheduler.in_progress)) == (False, [7])
    assert scheduler.done("a", 0, 2.0) is False
    assert scheduler.remove_worker("a") == [Assignment(shard=7)]
    assert scheduler.done_elsewhere({0, 4, 5, 7}) == {4, 7}
    assert [scheduler.next_for("b", 3.0), scheduler.next_for("b", 3.0)] == [
        Assignment(shard=3),
        Assignment(shard=5, again=True),
    ]
    assert scheduler.done_elsewhere({3, 5}) == {3}
    assert not scheduler.complete
    assert scheduler.done("b", 5, 4.0)
    assert scheduler.complete


@pytest.mark.parametrize("workers", [1, 2, 8, 60])
@pytest.mark.parametrize("seed", range(5))
def test_every_shard_is_done_whatever_dies_and_no_worker_idles_beside_unassigned_shards(
    workers: int, seed: int
) -> None:
    dice, scheduler, done = random.Random(seed), ShardScheduler(shards(200)), set()
    ends: list[tuple[float, int, int, bool]] = []
    idle, now, generation = set(range(workers)), 0.0, workers
    while not scheduler.complete:
        for worker in sorted(idle):
            if task := scheduler.next_for(worker, now):
                idle.discard(worker)
                time_s = dice.lognormvariate(4, 0.3) * (10 if dice.random() < 0.02 else 1)
                heapq.heappush(ends, (now + time_s, worker, task.shard, dice.random() < 0.05))
        if idle and ends:
            assert len(idle) + len(ends) == workers
            held = {shard for _, _, shard, _ in ends}
            assert held | done == set(range(200))
        if ends and (not idle or ends[0][0] < now + 1):
            now, worker, shard, dies = heapq.heappop(ends)
            if dies:
                scheduler.requeue(scheduler.remove_worker(worker))
                worker, generation = generation, generation + 1
            else:
                assert scheduler.done(worker, shard, now) == (shard not in done)
                done.add(shard)
            idle.add(worker)
        else:
            now += 1
    assert done == set(range(200))
