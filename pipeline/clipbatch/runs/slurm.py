"""Submit a run to Slurm: plan here, then an array job for the open shards, and behind it a job that checks the run.

    shards-*.txt                 the shards that were open when an array was submitted
    array.sbatch, check.sbatch   the scripts, as submitted last
    jobs.txt                     what was submitted, a line each
    logs/                        output of tasks and checks

These are in the folder `slurm` of the run directory, or where the caller says.

Task k of w does the k-th of the listed shards, and every w-th after it, so that a stretch of large images is shared by
all tasks. Slurm is spoken to through its commands alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which

from clipbatch.config import Settings
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from clipbatch.runs.slurm_scripts import SlurmJob, array_script, check_script
from clipbatch.storage.atomic import publish, writing_failed
from clipbatch.storage.uris import absolute, is_url
from clipbatch.workers.ranks import named_shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What was submitted, or what would be."""

    # Of the run.
    shards: int
    # Of these, what was to be done.
    open_shards: int
    tasks: int = 0
    array_job: str | None = None
    # Job numbers; None where nothing was submitted.
    check_job: str | None = None
    # Where scripts, lists and logs are; absolute.
    folder: str


def submit(
    settings: Settings,
    out: str | os.PathLike[str],
    job: SlurmJob,
    *,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Submitted:
    """Plan a run, or take up the one in `out`, and submit its open shards.

    settings: as for `api.run`. folder: for scripts, lists and logs, by default `slurm` in the run directory. dry_run:
    plan and write the scripts, but submit nothing.
    Raises: InputError where settings or inputs are refused, Slurm's commands are not there, or Slurm refuses the job.
    """
    given = [name for name in ("rank", "world_size", "gpus") if getattr(settings.launch, name) is not None]
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')} is for a run by hand: --array divides a run among its tasks, --gres gpu:N "
            "asks for their GPUs, and a task uses all that it gets"
        )
    if settings.launch.engine != "local":
        raise InputError("--engine ray needs no Slurm, and the tasks of an array no Ray: leave it out")
    if settings.model.device == "auto" and (job.gres or "").startswith("gpu"):
        settings = settings.replace(device="cuda")  # the nodes have GPUs, whatever this machine has
    where = absolute(os.fspath(out))
    here = _folder(where, folder)
    if not dry_run:
        _check_commands()
        _check_idle(here)
    run = RunDir(where)
    plan = planner.plan(settings, where, overwrite=overwrite)
    finished = run.done(plan)
    todo = [shard for shard in named_shards(settings.launch.shards, plan.shards) if shard not in finished]
    if not todo:
        return Submitted(shards=plan.shards, open_shards=0, folder=os.fspath(here))
    tasks = min(job.tasks, len(todo))
    if not dry_run:
        _check_size(tasks)
    array, check = _write_scripts(where, here, settings, job, todo, tasks)
    made = Submitted(shards=plan.shards, open_shards=len(todo), tasks=tasks, folder=os.fspath(here))
    if dry_run:
        return made
    array_job = _sbatch(array)
    _record(here, f"array {array_job}: {tasks} tasks for {len(todo)} open shards of {plan.shards}")
    try:
        check_job = _sbatch(check, f"--dependency=afterany:{array_job}")
    except InputError as error:
        raise InputError(f"array job {array_job} was submitted and will run; the check was not: {error}") from error
    _record(here, f"check {check_job}, after array {array_job}")
    return replace(made, array_job=array_job, check_job=check_job)


def _folder(out: str, given: str | os.PathLike[str] | None) -> Path:
    if given is None and is_url(out):
        raise InputError(f"--out {out} is in a store, where Slurm cannot write logs: give --slurm-dir FOLDER for them")
    return Path(out, "slurm") if given is None else Path(os.path.abspath(given))


def _check_commands() -> None:
    for name in ("sbatch", "squeue", "scontrol"):
        if which(name) is None:
            raise InputError(
                f"there is no {name} on the PATH: submit from a machine of a Slurm cluster, or look at what would be "
                "submitted with --dry-run"
            )


def _check_size(tasks: int) -> None:
    """Raises: InputError where the cluster takes no array of so many tasks."""
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown.stdout, re.MULTILINE)
    if match and tasks > int(match[1]):
        raise InputError(f"--array {tasks}: this cluster takes arrays of {match[1]} tasks at most (MaxArraySize)")


def _check_idle(here: Path) -> None:
    """Raises: InputError where an array of this run is queued or running, which would do the same shards."""
    try:
        recorded = (here / "jobs.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for number in re.findall(r"Z array (\d+)", recorded)[-1:]:
        command = ["squeue", "--noheader", f"--jobs={number}", "--format=%i"]
        if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip():
            raise InputError(
                f"array job {number} of this run is queued or running, and would do the same shards: wait for it "
                f"(squeue -j {number}), or end it first (scancel {number}); finished parts stay"
            )


def _write_scripts(
    out: str, here: Path, settings: Settings, job: SlurmJob, todo: list[int], tasks: int
) -> tuple[Path, Path]:
    try:
        (here / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(here, error) from error
    listed = here / f"shards-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.txt"
    array, check = here / "array.sbatch", here / "check.sbatch"
    for path, content in (
        (listed, _ranges(todo).encode()),
        (array, array_script(out, here, job, listed, tasks, _flags(settings))),
        (check, check_script(out, here, job)),
    ):
        with publish(path) as file:
            file.write(content)
    return array, check


def _flags(settings: Settings) -> list[str]:
    """The settings that each invocation chooses anew, where they are not the defaults."""
    usual = Settings().flat()
    ours = settings.within("worker") | settings.within("invocation")
    return [f"--{name.replace('_', '-')}={value}" for name, value in ours.items() if value != usual[name]]


def _ranges(shards: list[int]) -> str:
    """Ascending numbers as `--shards` reads them from a file: 0-3, 7, 9-12, one on a line."""
    starts = [at for at, shard in enumerate(shards) if at == 0 or shards[at - 1] != shard - 1]
    pairs = [(shards[at], shards[end - 1]) for at, end in zip(starts, [*starts[1:], len(shards)], strict=True)]
    return "".join(f"{first}-{last}\n" if last > first else f"{first}\n" for first, last in pairs)


def _sbatch(script: Path, *options: str) -> str:
    """Submit; returns the job's number. Raises: InputError with what sbatch said."""
    made = subprocess.run(
        ["sbatch", "--parsable", *options, os.fspath(script)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        said = " ".join(made.stderr.split()) or f"exit code {made.returncode}"
        raise InputError(f"sbatch refuses {script}: {said}")
    return made.stdout.strip().partition(";")[0]


def _record(here: Path, text: str) -> None:
    with contextlib.suppress(OSError), open(here / "jobs.txt", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")
