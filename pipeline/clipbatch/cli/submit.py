"""The command `submit slurm`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from clipbatch.cli.options import Json, Out, Overwrite, takes_settings
from clipbatch.cli.output import json_text
from clipbatch.cli.standard_streams import result_is_on_disk
from clipbatch.config import Settings

if TYPE_CHECKING:
    from clipbatch.runs import slurm
    from clipbatch.runs.slurm_scripts import SlurmJob


app = typer.Typer(help="Submit a run to a cluster.", no_args_is_help=True)


def _option(name: str, help_text: str) -> Any:
    return typer.Option(name, help=help_text, rich_help_panel="Slurm")


@app.command("slurm")
@takes_settings
def slurm_command(
    settings: Settings,
    *,
    out: Out,
    array: Annotated[str, _option("--array", "Number of tasks: 64, or 64%8 to run 8 at a time.")],
    gres: Annotated[
        Optional[str], _option("--gres", "What a task needs, as in gpu:1. With gpu, plans for GPUs, else for CPUs.")
    ] = None,
    time: Annotated[Optional[str], _option("--time", "Time limit of a task; after it, the task is requeued.")] = None,
    partition: Annotated[Optional[str], _option("--partition", "As of sbatch.")] = None,
    cpus_per_task: Annotated[Optional[int], _option("--cpus-per-task", "As of sbatch.")] = None,
    mem: Annotated[Optional[str], _option("--mem", "As of sbatch.")] = None,
    sbatch_option: Annotated[
        Optional[list[str]], _option("--sbatch-option", "Another option of sbatch: '--account=lab' (repeatable).")
    ] = None,
    check_sbatch_option: Annotated[
        Optional[list[str]],
        _option("--check-sbatch-option", "One for the check job alone: '--time=2:00:00', '--mem=8G' (repeatable)."),
    ] = None,
    setup: Annotated[
        Optional[Path], _option("--setup", "FILE of lines that come before clipbatch: module load, conda, venv.")
    ] = None,
    launcher: Annotated[
        str, _option("--launcher", "What starts clipbatch on a node: 'apptainer exec --nv /data/clipbatch.sif'.")
    ] = "",
    requeues: Annotated[
        int, _option("--requeues", "How often a task that failed is requeued; time limits and preemption do not count.")
    ] = 3,
    slurm_dir: Annotated[
        Optional[Path], _option("--slurm-dir", "Folder for scripts and logs; default: slurm in the run directory.")
    ] = None,
    dry_run: Annotated[bool, _option("--dry-run", "Only show what would be submitted; leave nothing behind.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Plan here, and label the open parts as a Slurm array job; a second job verifies the run afterwards.

    Example: clipbatch submit slurm photos/ --labels labels.txt --out scores/ --array 64 --gres gpu:1
    """
    from clipbatch.runs import slurm
    from clipbatch.runs.slurm_scripts import SlurmJob

    result_is_on_disk()
    job = SlurmJob(
        array=array,
        gres=gres,
        time=time,
        partition=partition,
        cpus_per_task=cpus_per_task,
        mem=mem,
        sbatch_option=tuple(sbatch_option or ()),
        check_sbatch_option=tuple(check_sbatch_option or ()),
        setup=slurm.setup_lines(setup),
        launcher=launcher,
        requeues=requeues,
    )
    slurm.check_launcher(launcher)
    submitted = slurm.submit(settings, out, job, folder=slurm_dir, overwrite=overwrite, dry_run=dry_run)
    print(json_text(dataclasses.asdict(submitted)) if as_json else _text(submitted, job, out))


def _text(submitted: slurm.Submitted, job: SlurmJob, out: str) -> str:
    run, folder = shlex.quote(out), shlex.quote(submitted.folder)
    if not submitted.open_shards:
        return f"nothing to submit: no part is open; to check all {submitted.shards} parts: clipbatch verify {run}"
    jobs = f"{submitted.tasks} tasks for {submitted.open_shards} open parts of {submitted.shards}"
    notes = []
    if submitted.tasks < job.tasks:
        notes.append(
            f"{submitted.tasks} tasks and not {job.tasks}, as a task does at least one part; smaller parts "
            "(--shard-size) would make more, but only in a new plan"
        )
    if submitted.device is not None:
        asked = "" if job.device == submitted.device else f", and the tasks ask for {_DEVICES[job.device]}"
        notes.append(f"the run is planned for {_DEVICES[submitted.device]}{asked} (--gres, --device)")
    notes += [submitted.remark] if submitted.remark else []
    if submitted.array_job is None:
        lines = [
            f"would submit {jobs}:",
            f"  sbatch {folder}/array.sbatch",
            f"  sbatch --dependency=afterany:ARRAY_JOB {folder}/check.sbatch",
        ]
        scripts = [f"== {name}\n{script}" for name, script in submitted.scripts.items()]
        return "\n".join([*lines, *(f"  note         {note}" for note in notes), "", *scripts]).rstrip()
    lines = [
        f"array job {submitted.array_job}: {jobs}; check job {submitted.check_job} runs after it",
        *(f"  note         {note}" for note in notes),
        f"  progress     squeue -j {submitted.array_job},{submitted.check_job}; clipbatch status {run}",
        f"  logs         {folder}/logs/{submitted.array_job}_*.out, check-{submitted.check_job}.out",
        f"  cancel       scancel {submitted.array_job} {submitted.check_job}",
        "  continue     the same command: it takes the parts that are open then",
    ]
    return "\n".join(lines)


_DEVICES = {"cpu": "CPUs", "cuda": "GPUs"}
