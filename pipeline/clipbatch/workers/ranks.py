"""Which part of a run this process does, according to its options or the variables that its launcher has set.

    the first line that applies decides     rank                                   world size
    --rank, --world-size                    --rank                                 --world-size
    --world-size in an indexed Job of       JOB_COMPLETION_INDEX                   --world-size
      Kubernetes
    torchrun                                RANK                                   WORLD_SIZE
    a step of srun, unless for a terminal   SLURM_PROCID                           SLURM_STEP_NUM_TASKS
      (--pty: SLURM_PTY_PORT)
    none of them                            0                                      1

In a task of a Slurm array, torchrun or srun divides the work of the task further. The task's number is
(SLURM_ARRAY_TASK_ID - _MIN) / _STEP, out of SLURM_ARRAY_TASK_COUNT tasks, and
rank = task * inner world size + inner rank. Options and Kubernetes override all of this.

SLURM_PROCID and SLURM_NTASKS of a batch script itself are ignored: a script that requested eight tasks and calls
clipbatch without srun is one process, which does everything.

All ranks list the shards to do in the same order: all shards of the run, or those that `--shards` names. The part of
rank r of w is the shards at positions r, r + w, r + 2w, ... of that list. The list does not depend on which shards are
finished, so ranks that start hours apart miss no shard. A rank whose part is done helps the others (`helping`). A later
invocation with another world size does whatever is still open.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipbatch.config import LaunchSettings
from clipbatch.config.validation import SettingError
from clipbatch.errors import InputError

# The largest shard number, plus one, that `--shards` may name. A larger one is a typing error.
_MAX_SHARDS = 10**7
_NUMBERS = re.compile(r"[0-9]+(-[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """The part of one of `world` processes that share a run."""

    number: int = 0
    world: int = 1
    # The position of this process among those that the launcher started on this machine.
    local: int = 0
    local_world: int = 1

    def part(self, shards: Sequence[int]) -> list[int]:
        """This rank's part of `shards`. Every rank must pass them in the same order."""
        return list(shards[self.number :: self.world])

    def others(self, shards: Sequence[int]) -> list[int]:
        """The parts of all other ranks in a random order, which differs from rank to rank."""
        mine = set(self.part(shards))
        order = [shard for shard in shards if shard not in mine]
        random.Random(f"rank {self.number} of {self.world}").shuffle(order)
        return order


def find(settings: LaunchSettings, environment: Mapping[str, str]) -> Rank:
    """The rank of this process. environment: variables by name, as in os.environ.

    Raises: InputError if options are incomplete or variables contradict each other; the message names them and the
    remedy.
    """
    rank, world = settings.rank, settings.world_size
    inner = _torchrun(environment) or _srun(environment) or Rank()
    if world is None:
        if rank is not None:
            raise SettingError(f"rank {rank} of how many? Give --world-size too")
        if "JOB_COMPLETION_INDEX" in environment:
            raise InputError(
                f"JOB_COMPLETION_INDEX={environment['JOB_COMPLETION_INDEX']}: this is one of several pods, but of how "
                "many? Give --world-size, the Job's completions"
            )
        task, tasks = _array(environment)
        return _checked(inner, task * inner.world + inner.number, tasks * inner.world)
    if rank is None:
        if "JOB_COMPLETION_INDEX" not in environment:
            raise SettingError(f"world_size {world}: which of them is this? Give --rank too, from 0 to {world - 1}")
        rank = _number(environment, "JOB_COMPLETION_INDEX")
    return _checked(inner, rank, world)


def named_shards(named: str | None, shards: int) -> list[int]:
    """The shards to divide among the ranks, sorted.

    named: the value of `--shards`; None: all shards of the run. shards: how many the run has.
    Raises: InputError if a file cannot be read, or names something that is not the number of a shard of the run.
    """
    if named is None:
        return list(range(shards))
    words, where = named.split(","), "--shards"
    if not all(_NUMBERS.fullmatch(word.strip()) for word in words):
        try:
            words, where = Path(named).read_text(encoding="utf-8").split(), f"--shards {named}"
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise InputError(f"--shards {named!r} is neither numbers, as in 3,5-9, nor a file ({reason})") from error
    numbers: set[int] = set()
    for word in words:
        if not _NUMBERS.fullmatch(word.strip()):
            raise InputError(f"{where}: {word!r} is neither a number nor a range as in 5-9")
        first, _, last = word.partition("-")
        start, stop = int(first), int(last or first) + 1
        if stop <= start or stop > min(shards, _MAX_SHARDS):
            raise InputError(f"{where}: there is no part {word.strip()}; the run has 0 to {shards - 1}")
        numbers.update(range(start, stop))
    return sorted(numbers)


def _torchrun(environment: Mapping[str, str]) -> Rank | None:
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return None
    number, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    local = _number(environment, "LOCAL_RANK", 0)
    return Rank(
        number=number, world=world, local=local, local_world=_number(environment, "LOCAL_WORLD_SIZE", local + 1)
    )


def _srun(environment: Mapping[str, str]) -> Rank | None:
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_PTY_PORT" in environment:
        return None
    node, local = _number(environment, "SLURM_NODEID", 0), _number(environment, "SLURM_LOCALID", 0)
    by_node = _tasks_by_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return Rank(
        number=_number(environment, "SLURM_PROCID"),
        world=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local=local,
        local_world=by_node[node] if node < len(by_node) else local + 1,
    )


def _tasks_by_node(text: str) -> list[int]:
    """The number of tasks on each node, from Slurm's notation: `2(x3),1` is three nodes with two tasks and one with
    one."""
    by_node = []
    for tasks, nodes in re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", text):
        by_node += [int(tasks)] * int(nodes or 1)
    return by_node


def _array(environment: Mapping[str, str]) -> tuple[int, int]:
    """The number of this task in its Slurm array and how many tasks there are; (0, 1) outside an array."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    task, first, last, step = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}", default)
        for name, default in (("ID", None), ("MIN", None), ("MAX", None), ("STEP", 1))
    )
    tasks = len(range(first, last + 1, max(1, step)))
    if tasks != _number(environment, "SLURM_ARRAY_TASK_COUNT", tasks) or (task - first) % max(1, step):
        raise InputError(
            f"the Slurm array from {first} to {last} has gaps, so task {task} cannot compute its part: give --rank and "
            "--world-size, or use an array without gaps"
        )
    return (task - first) // max(1, step), tasks


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit():
        raise InputError(f"{name}={text!r} is not a number: give --rank and --world-size, or unset it")
    return int(text)


def _checked(inner: Rank, number: int, world: int) -> Rank:
    if not 0 <= number < world:
        raise InputError(f"rank {number} of a world size of {world}: ranks run from 0 to {world - 1}")
    return Rank(number=number, world=world, local=inner.local, local_world=max(inner.local_world, inner.local + 1))
