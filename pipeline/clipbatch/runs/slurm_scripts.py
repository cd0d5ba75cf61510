"""The batch scripts of a run on Slurm, as text. This module starts nothing and reads nothing.

A task of the array requeues itself depending on how its part of the run has ended:

    exit code                              means                                 requeued
    0                                      done                                  no
    3, 4                                   refused, or too many bad images       no: it would end the same way
    75 after SIGUSR1                       out of time, or about to be preempted up to `requeues` times
    others                                 a failure, perhaps of the machine     up to `requeues` times
    any, while Slurm ends the task itself  scancel, preemption, a dead node      Slurm decides

The script asks Slurm whether the last line applies: a task is RUNNING until Slurm begins to end it.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipbatch.config.validation import Checked, SettingError, at_least
from clipbatch.errors import InputError

# How long before the time limit Slurm sends SIGUSR1. A run ends within seconds.
WARNING_S = 60
_ARRAY = re.compile(r"[1-9][0-9]*(%[1-9][0-9]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob(Checked):
    """The options for Slurm. Texts are in sbatch's own format."""

    # The number of tasks and, after a %, how many of them may run at the same time.
    array: str
    gres: str | None = None
    # The time limit of a task. A task that runs out of time is requeued.
    time: str | None = None
    partition: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    # Further options of sbatch for the array and the check, as on its command line.
    sbatch_option: tuple[str, ...] = ()
    # How often a task may be requeued.
    requeues: int = 3

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not _ARRAY.fullmatch(self.array):
            raise SettingError(f"array {self.array!r} is not a number of tasks: use 64, or 64%8 to run 8 at a time")
        at_least("cpus_per_task", self.cpus_per_task, 1)
        at_least("requeues", self.requeues, 0)
        for name in ("gres", "time", "partition", "mem"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w:.,/=+*@~-]+", value):
                raise SettingError(f"{name} {value!r} is not a value that sbatch accepts")
        for option in self.sbatch_option:
            if not option.startswith("-") or not option.isprintable():
                raise SettingError(
                    f"sbatch_option {option!r} is not an option of sbatch: use '--account=lab' or '-A lab'"
                )

    @property
    def tasks(self) -> int:
        return int(self.array.partition("%")[0])

    def directives(self) -> list[str]:
        """The options for a task of the array."""
        own = {"gres": self.gres, "time": self.time, "cpus-per-task": self.cpus_per_task, "mem": self.mem}
        return [*(f"--{name}={value}" for name, value in own.items() if value is not None), *self.common()]

    def common(self) -> list[str]:
        """The options for both the array and the check."""
        return [*([f"--partition={self.partition}"] if self.partition else []), *self.sbatch_option]


def array_script(run: str, folder: Path, job: SlurmJob, shards: Path, tasks: int, flags: Sequence[str]) -> bytes:
    """The script of an array of `tasks` tasks for the shards listed in the file `shards`.

    run: the run directory, an absolute path or a URL. folder: the one of the scripts and of `logs`, absolute. flags:
    options of `clipbatch run`, except those for the run and its part.
    Raises: InputError if Slurm cannot write logs into a folder of this name.
    """
    _, percent, at_a_time = job.array.partition("%")
    directives = [
        f"--array=0-{tasks - 1}{percent}{at_a_time}",
        *_placed(folder, "%A_%a.out"),
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{WARNING_S}",
        *job.directives(),
    ]
    command = _lines(
        [*_PYTHON, "run"],
        ["--out", run],
        ["--shards", os.fspath(shards)],
        [f"--world-size={tasks}"],
        *([flag] for flag in flags),
    )
    return _script(
        f"""\
# Each task of this array labels its part of the shards that were open at submission.
# Written by clipbatch submit slurm. You can submit it again with sbatch; doing shards twice does no harm.
{_header(directives)}
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID restarts=${{SLURM_RESTART_COUNT:-0}}
say() {{ echo "$(date '+%F %T') task $task on $SLURMD_NODENAME: $*"; }}
say "started, requeued $restarts times before"

# SIGUSR1 comes before the time limit or preemption, and only to this script; SIGTERM goes to all its processes.
trap 'again=yes; kill -USR1 "$run"' USR1
trap 'again=yes' TERM
{command} \\
    --rank="$SLURM_ARRAY_TASK_ID" &
run=$!
while again=; wait "$run"; code=$?; [ "$again" ]; do :; done

case $code in
0) say "done" ;;
3 | 4) say "exit code $code: refused, and would be refused again" ;;
*)
    if [ "$(squeue --noheader --jobs="$task" --format=%T)" != RUNNING ]; then
        say "exit code $code: Slurm is ending this task, and decides whether to requeue it"
    elif [ "$restarts" -ge {job.requeues} ]; then
        say "exit code $code: not requeued, as it has been requeued {job.requeues} times"
    else
        say "exit code $code: requeueing"
        scontrol requeue "$task"
    fi
    ;;
esac
exit "$code"
"""
    )


def check_script(run: str, folder: Path, job: SlurmJob) -> bytes:
    """The script of the job that checks a run. Exits with the code of `clipbatch verify`, or 1 if the report fails."""
    directives = [*_placed(folder, "check-%j.out"), *job.common()]
    return _script(
        f"""\
# Checks the whole run after the array has ended, and makes its report. Fails (exit code 5) if a part is missing or
# damaged.
{_header(directives)}
{_lines([*_PYTHON, "verify", run])}
code=$?
{_lines([*_PYTHON, "report", run])} || [ "$code" -ne 0 ] || code=1
exit "$code"
"""
    )


_PYTHON = (sys.executable, "-m", "clipbatch")


def _placed(folder: Path, log: str) -> list[str]:
    path = os.fspath(folder)
    if "\\" in path or not path.isprintable():
        raise InputError(f"Slurm cannot write logs into a folder of this name: {path!r}: choose another --out")
    logs = shlex.quote(path.replace("%", "%%") + "/logs/" + log)
    return ["--job-name=clipbatch", f"--chdir={shlex.quote(path)}", f"--output={logs}"]


def _header(directives: Sequence[str]) -> str:
    return "".join(f"#SBATCH {directive}\n" for directive in directives)


def _lines(*groups: Sequence[str]) -> str:
    return " \\\n    ".join(shlex.join(group) for group in groups)


def _script(body: str) -> bytes:
    return b"#!/bin/bash\n" + os.fsencode(body)
