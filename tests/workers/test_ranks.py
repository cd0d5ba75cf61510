"""Which part of a run a process does: which options and variables decide, as a table."""

from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import LaunchSettings
from clipbatch.errors import InputError
from clipbatch.workers.ranks import Rank, find, named_shards

ARRAY = {
    **{"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "7"},
    **{"SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_NODEID": "0"}
STEP = {**BATCH, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
TORCH = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
FLAGS = {"rank": 1, "world_size": 3}


@pytest.mark.parametrize(
    ("flags", "variables", "rank", "world"),
    [
        pytest.param({}, {}, 0, 1, id="alone"),
        pytest.param(FLAGS, {}, 1, 3, id="flags"),
        pytest.param(FLAGS, {**ARRAY, **STEP, **TORCH, "JOB_COMPLETION_INDEX": "9"}, 1, 3, id="flags win over all"),
        pytest.param({}, ARRAY, 3, 8, id="array"),
        pytest.param({}, ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"}, 2, 8, id="array from 1"),
        pytest.param(
            {},
            ARRAY | {"SLURM_ARRAY_TASK_MAX": "6", "SLURM_ARRAY_TASK_STEP": "3", "SLURM_ARRAY_TASK_COUNT": "3"},
            *(1, 3),
            id="array in steps",
        ),
        pytest.param(
            {},
            ARRAY
            | dict.fromkeys(("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"), "3")
            | {"SLURM_ARRAY_TASK_COUNT": "1"},
            *(0, 1),
            id="array of one, submitted again by its number",
        ),
        pytest.param({}, BATCH, 0, 1, id="a batch script of eight tasks that does not call srun"),
        pytest.param({}, STEP, 5, 8, id="srun"),
        pytest.param({}, STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 0, 1, id="srun of one task"),
        pytest.param({}, STEP | {"SLURM_PTY_PORT": "4711"}, 0, 1, id="a terminal that srun opened"),
        pytest.param({}, ARRAY | STEP, 3 * 8 + 5, 64, id="srun inside an array"),
        pytest.param({}, TORCH, 2, 4, id="torchrun"),
        pytest.param({}, STEP | TORCH, 2, 4, id="torchrun inside srun"),
        pytest.param({}, ARRAY | TORCH, 3 * 4 + 2, 32, id="torchrun inside an array"),
        pytest.param({}, {"WORLD_SIZE": "4"}, 0, 1, id="half of torchrun is something else"),
        pytest.param({"world_size": 5}, {"JOB_COMPLETION_INDEX": "4"}, 4, 5, id="Kubernetes"),
        pytest.param({"world_size": 5}, {"JOB_COMPLETION_INDEX": "4"} | TORCH, 4, 5, id="Kubernetes and torchrun"),
    ],
)
def test_the_first_applicable_source_decides_the_rank(
    flags: dict[str, Any], variables: dict[str, str], rank: int, world: int
) -> None:
    found = find(LaunchSettings(**flags), variables)
    assert (found.number, found.world) == (rank, world)


@pytest.mark.parametrize(
    ("flags", "variables", "said"),
    [
        ({"rank": 3}, {}, "rank 3 of how many"),
        ({"world_size": 3}, {}, "which of them is this.*from 0 to 2"),
        ({"rank": 3, "world_size": 3}, {}, "rank 3 of a world size of 3"),
        ({}, {"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX=1.*--world-size"),
        ({"world_size": 2}, {"JOB_COMPLETION_INDEX": "2"}, "rank 2 of a world size of 2"),
        ({}, {"RANK": "4", "WORLD_SIZE": "4"}, "rank 4 of a world size of 4"),
        ({}, {"RANK": "first", "WORLD_SIZE": "4"}, "RANK='first' is not a number"),
        ({}, ARRAY | {"SLURM_ARRAY_TASK_COUNT": "3"}, "array from 0 to 7 has gaps"),
        ({}, {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN=None"),
    ],
)
def test_incomplete_or_contradictory_ranks_are_refused_by_name(
    flags: dict[str, Any], variables: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        find(LaunchSettings(**flags), variables)


@pytest.mark.parametrize(
    ("variables", "local", "local_world"),
    [
        (TORCH, 0, 2),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 1, 2),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 1, 4),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "1,3(x2),1"}, 1, 3),
        (BATCH, 0, 1),
    ],
)
def test_ranks_on_the_same_machine_are_counted(variables: dict[str, str], local: int, local_world: int) -> None:
    found = find(LaunchSettings(), variables)
    assert (found.local, found.local_world) == (local, local_world)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 40])
def test_the_parts_of_all_ranks_cover_every_shard_once(world: int) -> None:
    shards = named_shards("3,5-30,7", 100)
    parts = [Rank(number=number, world=world).part(shards) for number in range(world)]
    assert sorted(shard for part in parts for shard in part) == shards == [3, *range(5, 31)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_rank_takes_the_shards_of_the_others_in_an_order_of_its_own() -> None:
    shards = named_shards("0-99", 100)
    ranks = [Rank(number=number, world=4) for number in range(4)]
    orders = [rank.others(shards) for rank in ranks]
    for rank, order in zip(ranks, orders, strict=True):
        assert sorted(order) == sorted(set(shards) - set(rank.part(shards)))
    assert len({tuple(order[:3]) for order in orders}) == 4
    assert orders == [rank.others(shards) for rank in ranks]
    assert Rank().others(shards) == []


def test_shards_are_named_as_numbers_or_in_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "open.txt"
    listed.write_text("9\n3-4\n\n0 1\n")
    assert named_shards(str(listed), 10) == [0, 1, 3, 4, 9]
    assert named_shards("9, 3-4,0", 10) == [0, 3, 4, 9]
    assert named_shards(None, 3) == [0, 1, 2]
    listed.write_text("")
    assert named_shards(str(listed), 10) == []


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nowhere.txt", "'nowhere.txt' is neither numbers.*nor a file"),
        ("10", "there is no part 10; the run has 0 to 9"),
        ("3,5-10", "no part 5-10"),
        ("5-3", "no part 5-3"),
        ("{file}", "'three' is neither a number nor a range"),
    ],
)
def test_invalid_shards_are_refused(tmp_path: Path, named: str, said: str) -> None:
    (tmp_path / "open.txt").write_text("1\nthree\n")
    with pytest.raises(InputError, match=said):
        named_shards(named.format(file=tmp_path / "open.txt"), 10)
