"""Submits a run to Slurm: plans it here, then submits an array job for the open shards, and a job that checks the run.

    shards-*.txt                 the shards that were open when an array was submitted
    array.sbatch, check.sbatch   the scripts that were submitted last
    jobs.txt                     the jobs that were submitted, one on each line
    logs/                        the output of tasks and checks

These files are in the folder `slurm` of the run directory, or in a folder that the user names. Lists and logs are kept
for the last `MAX_ARRAYS` arrays.

Task k of w takes the k-th listed shard and every w-th shard after it, so neighbouring shards with large images are
spread over all tasks. Slurm is used only through its commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import which
from typing import Any

from clipbatch.config import Settings
from clipbatch.errors import InputError, reading_failed
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from clipbatch.runs.slurm_scripts import SlurmJob, array_script, check_script
from clipbatch.runs.warnings import device_remark
from clipbatch.storage.atomic import publish, writing_failed
from clipbatch.storage.uris import absolute, is_url
from clipbatch.workers.ranks import named_shards

# How many arrays have their logs kept.
MAX_ARRAYS = 10

# An operator that is the end of a launcher, other than &&. A quoted one has a quote behind it.
_LAST_OPERATOR = re.compile(r"(?:^|[^\\;|&<>])(?:\\\\)*(?!&&\s*$)([;|&<>]+)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The jobs that were submitted, or would be."""

    # How many shards the run has.
    shards: int
    # How many of them were open.
    open_shards: int
    tasks: int = 0
    # Job numbers; None if nothing was submitted.
    array_job: str | None = None
    check_job: str | None = None
    # The folder of scripts, lists and logs; absolute.
    folder: str
    # For which device the run was planned: cpu or cuda. None: the plan does not say.
    device: str | None = None
    # What the user should know about the device.
    remark: str | None = None
    # The scripts by name, if nothing was submitted.
    scripts: dict[str, str] = field(default_factory=dict)


def submit(
    settings: Settings,
    out: str | os.PathLike[str],
    job: SlurmJob,
    *,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Submitted:
    """Plan a run, or use the plan in `out`, and submit its open shards.

    settings: as for `runs.run`. folder: for scripts, lists and logs; by default `slurm` in the run directory. dry_run:
    submit nothing, and leave nothing behind.
    Raises: InputError if settings or inputs are refused, Slurm's commands do not exist, or Slurm refuses the job.
    """
    by_hand = [name for name in ("rank", "world_size", "gpus") if getattr(settings.launch, name) is not None]
    if by_hand:
        raise InputError(
            f"--{by_hand[0].replace('_', '-')} is for runs that you start yourself: here, --array divides a run among "
            "its tasks, --gres gpu:N requests their GPUs, and a task uses all GPUs that it gets: leave it out"
        )
    if settings.launch.engine != "local":
        raise InputError("--engine ray needs no Slurm, and the tasks of an array need no Ray: leave it out")
    if settings.model.device == "auto":
        settings = settings.replace(device=job.device)  # whether or not this machine has a GPU
    run_path = absolute(os.fspath(out))
    directory = _folder(run_path, folder)
    if not dry_run:
        _check_commands()
        _check_idle(directory)
    run = RunDir(run_path)
    plan = _dry_plan(settings, run, overwrite) if dry_run else planner.plan(settings, run_path, overwrite=overwrite)
    finished = run.done(plan) if run.exists() and not (dry_run and overwrite) else set()
    todo = [shard for shard in named_shards(settings.launch.shards, plan.shards) if shard not in finished]
    facts: dict[str, Any] = {"shards": plan.shards, "open_shards": len(todo), "folder": os.fspath(directory)}
    if not todo:
        return Submitted(**facts, device=plan.device)
    tasks = min(job.tasks, len(todo))
    remark = device_remark(plan, settings, job.cpus_per_task)
    submitted = Submitted(**facts, tasks=tasks, device=plan.device, remark=remark)
    if not dry_run:
        _check_size(tasks)
    listed = directory / f"shards-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.txt"
    scripts = {
        "array.sbatch": array_script(run_path, directory, job, listed, tasks, _flags(settings), len(finished)),
        "check.sbatch": check_script(run_path, directory, job),
    }
    if dry_run:
        return replace(submitted, scripts={name: os.fsdecode(script) for name, script in scripts.items()})
    _write(directory, {listed.name: _ranges(todo).encode(), **scripts})
    array_job = _sbatch(directory / "array.sbatch")
    _record(directory, f"array {array_job}: {tasks} tasks for {len(todo)} open parts of {plan.shards}")
    try:
        check_job = _sbatch(directory / "check.sbatch", f"--dependency=afterany:{array_job}")
    except InputError as error:
        raise InputError(f"array job {array_job} was submitted and will run, but its check was not: {error}") from error
    _record(directory, f"check {check_job}, after array {array_job}")
    _remove_old(directory)
    return replace(submitted, array_job=array_job, check_job=check_job)


def setup_lines(path: Path | None) -> str:
    """The lines of a `--setup` file; '' without one. Raises: InputError if it cannot be read or is not bash."""
    if path is None:
        return ""
    try:
        text = os.fsdecode(path.read_bytes()).replace("\r\n", "\n")
    except OSError as error:
        raise reading_failed(f"--setup {path}", error) from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#SBATCH"):
            raise InputError(f"--setup {path}, line {number}: Slurm ignores {line!r} there: use --sbatch-option")
    if reason := _problem(text):
        raise InputError(f"--setup {path} is not a piece of bash: {reason}")
    return text


def _problem(text: str) -> str:
    """Why `text` is no complete piece of bash; '' if it is, or there is no bash here."""
    if (bash := which("bash")) is None:
        return ""
    # In this environment bash does not warn of locales. Of an unfinished here-document it only warns. Without -O, it
    # would refuse patterns such as @(a|b) after a `shopt -s extglob`, which -n does not execute.
    clean = {"LC_ALL": "C"}
    checked = subprocess.run(
        [bash, "-O", "extglob", "-n"], input=os.fsencode(text), capture_output=True, check=False, env=clean
    )
    said = " ".join(os.fsdecode(checked.stderr).split())
    return said or (f"exit code {checked.returncode}" if checked.returncode else "")


def check_launcher(launcher: str) -> None:
    """Raises: InputError if a command cannot begin so, if clipbatch would not be an argument of it, or if it names a
    file relative to this folder: the tasks run in another one."""
    if reason := _problem(f"{launcher} clipbatch\n"):
        raise InputError(f"--launcher {launcher!r} is not the beginning of a command: {reason}")
    if which("bash") and not _problem(f"{launcher} )\n"):  # bash refuses this parenthesis, unless a comment hides it
        raise InputError(f"--launcher {launcher!r} ends in a comment, which would hide clipbatch: leave it out")
    if operator := _LAST_OPERATOR.search(launcher):
        raise InputError(
            f"--launcher {launcher!r} ends in {operator[1]}, so it would not start clipbatch: leave it out; a command "
            "that has to succeed before clipbatch starts ends in &&"
        )
    for number, word in enumerate(shlex.split(launcher)):
        searched = number == 0 and "/" not in word  # on the PATH
        if not searched and not os.path.isabs(word) and os.path.isfile(word):
            raise InputError(
                f"--launcher: {word} is relative to this folder, in which the tasks do not run: write "
                f"{os.path.abspath(word)}"
            )


def _dry_plan(settings: Settings, run: RunDir, overwrite: bool) -> Plan:
    """The plan that the run has or would get. Leaves nothing behind."""
    if not overwrite and (run.is_begun() or not settings.source.inputs) and (plan := planner.existing(settings, run)):
        return plan
    with tempfile.TemporaryDirectory(prefix="clipbatch-dry-run-") as folder:
        return planner.plan(settings, Path(folder) / "run")


def _folder(out: str, folder: str | os.PathLike[str] | None) -> Path:
    if folder is None and is_url(out):
        raise InputError(f"--out {out} is in a store, where Slurm cannot write logs: give --slurm-dir FOLDER for them")
    return Path(out, "slurm") if folder is None else Path(os.path.abspath(folder))


def _check_commands() -> None:
    for name in ("sbatch", "squeue", "scontrol"):
        if which(name) is None:
            raise InputError(
                f"there is no {name} on the PATH: submit on a machine of a Slurm cluster, or see with --dry-run what "
                "would be submitted"
            )


def _check_size(tasks: int) -> None:
    """Raises: InputError if the cluster does not allow arrays of so many tasks."""
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown.stdout, re.MULTILINE)
    if match and tasks > int(match[1]):
        raise InputError(f"--array {tasks}: this cluster allows at most {match[1]} tasks in an array (MaxArraySize)")


def _check_idle(folder: Path) -> None:
    """Raises: InputError if an array of this run is queued or running, as it would do the same shards."""
    try:
        recorded = (folder / "jobs.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for number in re.findall(r"Z array (\d+)", recorded)[-1:]:
        command = ["squeue", "--noheader", f"--jobs={number}", "--format=%i"]
        if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip():
            raise InputError(
                f"array job {number} of this run is queued or running, and would do the same parts: wait for it "
                f"(squeue -j {number}), or cancel it first (scancel {number}); finished parts stay"
            )


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(folder, error) from error
    for name, content in files.items():
        with publish(folder / name) as file:
            file.write(content)


def _remove_old(folder: Path) -> None:
    """Remove the logs and lists of shards of all arrays but the last `MAX_ARRAYS` that `jobs.txt` names."""
    with contextlib.suppress(OSError):
        recorded = (folder / "jobs.txt").read_text(encoding="utf-8")
        arrays = re.findall(r"Z array (\d+)", recorded)
        checks = re.findall(r"Z check (\d+), after array (\d+)", recorded)
        old = set(arrays[:-MAX_ARRAYS]) - set(arrays[-MAX_ARRAYS:])
        for path in (folder / "logs").iterdir():
            number = re.fullmatch(r"(?:check-)?(\d+)(?:_\d+)?\.[a-z]+", path.name)
            if number and (number[1] in old or any(check == number[1] and array in old for check, array in checks)):
                path.unlink(missing_ok=True)
        for path in sorted(folder.glob("shards-*.txt"))[:-MAX_ARRAYS]:
            path.unlink(missing_ok=True)


def _flags(settings: Settings) -> list[str]:
    """The options for `clipbatch run` that are not part of the plan and differ from their defaults."""
    defaults = Settings().flat()
    chosen = settings.within("worker") | settings.within("invocation")
    return [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items() if value != defaults[name]]


def _ranges(shards: list[int]) -> str:
    """Ascending numbers in the format of a `--shards` file: ranges 0-3 and numbers 7, one on each line."""
    starts = [at for at, shard in enumerate(shards) if at == 0 or shards[at - 1] != shard - 1]
    pairs = [(shards[at], shards[end - 1]) for at, end in zip(starts, [*starts[1:], len(shards)], strict=True)]
    return "".join(f"{first}-{last}\n" if last > first else f"{first}\n" for first, last in pairs)


def _sbatch(script: Path, *options: str) -> str:
    """Submit a script. Returns the job's number. Raises: InputError with the error of sbatch."""
    result = subprocess.run(
        ["sbatch", "--parsable", *options, os.fspath(script)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        reason = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise InputError(f"sbatch refuses {script}: {reason}")
    return result.stdout.strip().partition(";")[0]


def _record(folder: Path, text: str) -> None:
    with contextlib.suppress(OSError), open(folder / "jobs.txt", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")
