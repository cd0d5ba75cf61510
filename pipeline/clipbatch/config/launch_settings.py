"""The settings of one invocation: where it runs, which shards it processes, and when it stops."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from clipbatch.config.validation import Checked, SettingError, at_least, setting

EngineName = Literal["local", "ray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings(Checked):
    """Where this invocation runs, which shards it processes, and when it stops. Not part of a run's identity."""

    engine: EngineName = setting(
        "local",
        "Machines",
        "placement",
        "local, or ray: on the Ray cluster of RAY_ADDRESS, or else one on this machine.",
    )
    gpus: str | None = setting(
        None, "Machines", "placement", "all, or numbers as in 0,1; default: all that are visible."
    )
    # On a CPU, the workers share its cores; None: 1 worker. On a Ray cluster, None: as many as fit.
    workers: int | None = setting(None, "Machines", "invocation", "Worker processes on a CPU, or on a Ray cluster.")
    # Several workers hand a GPU more images than one Python can. None: as many as the model is expected to need.
    workers_per_gpu: int | None = setting(
        None, "Machines", "invocation", "Worker processes on each GPU; default: more than 1 for small models."
    )
    # None: all cores of a node, or its cores divided by its GPUs.
    cpus_per_worker: int | None = setting(
        None, "Machines", "placement", "Cores that a worker asks a Ray cluster for; default: a node's, or a GPU's."
    )
    # None: read from the environment of Slurm, torchrun or Kubernetes.
    rank: int | None = setting(
        None, "Machines", "placement", "Which of --world-size processes this is, from 0; default: as Slurm says."
    )
    world_size: int | None = setting(None, "Machines", "placement", "How many processes share the run.")
    shards: str | None = setting(
        None, "Machines", "placement", "Do only these parts: 3,5-9, or a FILE of such numbers."
    )
    # With several workers, each file name gets a number.
    profile: str | None = setting(
        None, "Machines", "worker", "Write a Chrome trace of the first batches to this FILE (one a worker)."
    )
    # A number of images (`500`) or a share of all rows (`1%`).
    max_bad: str | None = setting(None, "Images", "invocation", "Stop when more are bad: a count, or a share as in 1%.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.gpus is not None and not re.fullmatch(r"all|[0-9]+(,[0-9]+)*", self.gpus):
            raise SettingError(f"gpus {self.gpus!r} is not known: use all, or numbers as in 0,1")
        at_least("workers", self.workers, 1)
        at_least("workers_per_gpu", self.workers_per_gpu, 1)
        at_least("cpus_per_worker", self.cpus_per_worker, 1)
        at_least("rank", self.rank, 0)
        at_least("world_size", self.world_size, 1)
        self.bad_allowed(0)

    def bad_allowed(self, rows: int) -> int | None:
        """How many of `rows` images `max_bad` allows to be bad; None: any number."""
        if self.max_bad is None:
            return None
        number, percent = self.max_bad.removesuffix("%"), self.max_bad.endswith("%")
        try:
            value = Fraction(number) if percent else Fraction(int(number))
        except (ValueError, ZeroDivisionError):
            value = Fraction(-1)
        if value < 0 or (percent and value > 100):
            raise SettingError(f"max_bad {self.max_bad!r} is neither a count nor a percentage: use 500 or 1%")
        return math.floor(rows * value / 100) if percent else int(value)
