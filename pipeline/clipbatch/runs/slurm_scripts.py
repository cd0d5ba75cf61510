"""The batch scripts of a run on Slurm, as text. This module starts nothing and reads nothing.

A task of the array requeues itself depending on how its part of the run has ended:

    exit code                              means                                 requeued
    0 of the run                           done                                  no
    2, 3, 4 of the run                     refused, or too many bad images       no: it would end the same way
    0 of the lines before it               a failure: the run did not begin      as others
    others after SIGUSR1                   out of time, or about to be preempted yes, if the run has got on since
    others                                 a failure, perhaps of the machine     up to `requeues` times
    any, while Slurm ends the task itself  scancel, preemption, a dead node      Slurm decides

The script asks Slurm whether the last line applies: a task is RUNNING until Slurm begins to end it. A file beside the
log counts the failures, since Slurm's own count has all requeues. A task that gets SIGUSR1 before the run has any new
part has failed, too: its time limit may be too short for a single shard.
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
# A task that starts shortens its log to half of this, if it is longer.
MAX_LOG_BYTES = 2 * 2**20
_ARRAY = re.compile(r"[1-9][0-9]*(%[1-9][0-9]*)?")
_GPU_GRES = re.compile(r"(^|,)(gres/)?(gpu|mps|shard)\b")
_GPU_OPTIONS = {"--gpus", "--gpus-per-node", "--gpus-per-socket", "--gpus-per-task", "-G"}
_GRES_OPTIONS = {"--gres", "--tres-per-task"}
_OPTION = re.compile(r"(--[a-z][a-z0-9-]*)(?:(?:=| +)(.*))?|(-[A-Za-z]) *(.*)")


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
    # Further options of sbatch for the array and the check: `--name=value`, `--name`, or `-n value`. We quote values.
    sbatch_option: tuple[str, ...] = ()
    # Options of sbatch for the check alone, which come after those for both.
    check_sbatch_option: tuple[str, ...] = ()
    # Lines of bash that come before the command in both scripts.
    setup: str = ""
    # What comes before `clipbatch` in its command line, as in a script: a container, for example.
    launcher: str = ""
    # How often a task that failed may be requeued.
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
        for name in ("sbatch_option", "check_sbatch_option"):
            for option in getattr(self, name):
                if not _OPTION.fullmatch(option) or not option.isprintable():
                    raise SettingError(f"{name} {option!r} is not an option of sbatch: use '--account=lab' or '-A lab'")
        try:
            shlex.split(self.launcher)
        except ValueError as error:
            raise SettingError(f"launcher {self.launcher!r} is not the beginning of a command: {error}") from error
        if not self.launcher.isprintable():
            raise SettingError(f"launcher {self.launcher!r} has more than one line, or characters that none has")

    @property
    def tasks(self) -> int:
        return int(self.array.partition("%")[0])

    @property
    def device(self) -> str:
        """What the tasks run on: cuda if --gres or an option such as --gpus-per-task asks for GPUs, else cpu."""
        options = [match.groups() for match in map(_OPTION.fullmatch, self.sbatch_option) if match]
        gres = [self.gres or "", *(value or "" for name, value, *_ in options if name in _GRES_OPTIONS)]
        by_option = any({name, letter} & _GPU_OPTIONS for name, _, letter, _ in options)
        return "cuda" if by_option or any(map(_GPU_GRES.search, gres)) else "cpu"

    def directives(self) -> list[str]:
        """The options for a task of the array."""
        own = {"gres": self.gres, "time": self.time, "cpus-per-task": self.cpus_per_task, "mem": self.mem}
        return [*(f"--{name}={value}" for name, value in own.items() if value is not None), *self._common()]

    def check_directives(self) -> list[str]:
        """The options for the check. Of two that are the same, sbatch takes the last."""
        return [*self._common(), *map(_quoted, self.check_sbatch_option)]

    def _common(self) -> list[str]:
        return [*([f"--partition={self.partition}"] if self.partition else []), *map(_quoted, self.sbatch_option)]

    def command(self, *arguments: Sequence[str]) -> str:
        """The command line `clipbatch ARGUMENTS`, with a line for each group of arguments.

        It is this Python's clipbatch, unless the setup or the launcher brings another one.
        """
        program = ["clipbatch"] if self.setup or self.launcher else [sys.executable, "-m", "clipbatch"]
        (first, *rest) = ([*program, *arguments[0]], *arguments[1:])
        return " \\\n    ".join([*([self.launcher] if self.launcher else []), *map(shlex.join, (first, *rest))])


def array_script(
    run: str, folder: Path, job: SlurmJob, shards: Path, tasks: int, flags: Sequence[str], finished: int = 0
) -> bytes:
    """The script of an array of `tasks` tasks for the shards listed in the file `shards`.

    run: the run directory, an absolute path or a URL. folder: the one of the scripts and of `logs`, absolute. flags:
    options of `clipbatch run`, except those for the run and its part. finished: how many parts the run has already.
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
    command = job.command(
        ["run"],
        ["--out", run],
        ["--shards", os.fspath(shards)],
        [f"--world-size={tasks}"],
        *([flag] for flag in flags),
    )
    return _script(
        f"""\
# Each task of this array labels its share of the parts that were open at submission, and then helps the other tasks.
# Written by clipbatch submit slurm. You can submit it again with sbatch; doing parts twice does no harm.
{_header(directives)}
set_names() {{
    task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID restarts=${{SLURM_RESTART_COUNT:-0}}
    log={shlex.quote(os.fspath(folder / "logs"))}/$task run=
}}
set_names
warned= begun=
say() {{ echo "$(date '+%F %T') task $task on $SLURMD_NODENAME: $*"; }}
if [ -f "$log.out" ] && [ "$(wc -c <"$log.out")" -gt {MAX_LOG_BYTES} ]; then
    tail -c {MAX_LOG_BYTES // 2} "$log.out" >"$log.cut" && cat "$log.cut" >"$log.out" && say "the log was shortened"
    rm -f "$log.cut"
fi

parts() {{
    {job.command(["status", run, "--json"])} | sed -n 's/.*"parts_done": *\\([0-9]*\\).*/\\1/p'
}}
# How many parts the run had when the task was last requeued; and how often the task has failed.
parts_before() {{ cat "$log.parts" 2>/dev/null || echo {finished}; }}
failures() {{ cat "$log.failures" 2>/dev/null | wc -l; }}
got_on() {{
    now=$(parts)
    [ "${{now:-0}}" -gt "$(parts_before)" ] && echo "$now" >"$log.parts" && return 0
    say "the run has got no part since this task was last queued, so this counts as a failure: is --time too short?"
    return 1
}}

# How the task ends, with the exit code of its run or of the lines before it.
end() {{
    trap - EXIT
    set_names # the lines from --setup may use these names for something else
    case $begun$1 in
    yes0)
        say "done"
        rm -f "$log.parts" "$log.failures"
        exit 0
        ;;
    yes2 | yes3 | yes4)
        say "exit code $1: refused, and would be refused again"
        exit "$1"
        ;;
    0)
        say "exit code 0 before the run has begun, as by an exit in the lines from --setup: this counts as a failure"
        set -- 1
        ;;
    *126 | *127) say "exit code $1: a command was not found here: install it, or bring it with --setup or --launcher" ;;
    esac
    if [ "$(squeue --noheader --jobs="$task" --format=%T)" != RUNNING ]; then
        say "exit code $1: Slurm is ending this task, and decides whether to requeue it"
    elif [ "$warned" ] && got_on; then
        say "exit code $1: out of time or preempted; requeueing, which is not counted"
        scontrol requeue "$task"
    elif [ "$(failures)" -ge {job.requeues} ]; then
        say "exit code $1: not requeued, as it has failed $(failures) times before"
    elif ! echo "$1" >>"$log.failures"; then
        say "exit code $1: not requeued, as its failures cannot be counted in $log.failures"
    else
        say "exit code $1: requeueing, as it has failed $(failures) times, and {job.requeues} are allowed"
        scontrol requeue "$task"
    fi
    exit "$1"
}}

# SIGUSR1 comes before the time limit or preemption, and only to this script; SIGTERM goes to all its processes.
trap 'warned=yes again=yes; [ -z "$run" ] || kill -USR1 "$run"' USR1
trap 'again=yes' TERM
trap 'end $?' EXIT
say "started, requeued $restarts times before"
{_setup(job)}
begun=yes
{command} \\
    --rank="$SLURM_ARRAY_TASK_ID" &
run=$!
[ -z "$warned" ] || kill -USR1 "$run"
while again=; wait "$run"; code=$?; [ "$again" ]; do :; done
exit "$code"
"""
    )


def check_script(run: str, folder: Path, job: SlurmJob) -> bytes:
    """The script of the job that checks a run. Exits with the code of `clipbatch verify`, or 1 if the report fails."""
    directives = [*_placed(folder, "check-%j.out"), *job.check_directives()]
    # A setup that ends the script has checked nothing, whatever its exit code.
    ended = 'echo "exit code $code: nothing was checked"; [ "$code" -ne 0 ] || code=1; exit "$code"'
    trap = f"checked=\ntrap 'code=$?; [ \"$checked\" ] || {{ {ended}; }}' EXIT\n"
    guarded = f"{trap}{_setup(job)}checked=yes\n" if job.setup else ""
    return _script(
        f"""\
# Checks the whole run after the array has ended, and makes its report. Fails (exit code 5) if a part is missing or
# damaged.
{_header(directives)}
{guarded}
{job.command(["verify", run])}
code=$?
{job.command(["report", run])} || [ "$code" -ne 0 ] || code=1
exit "$code"
"""
    )


def _setup(job: SlurmJob) -> str:
    """The lines of the setup, after which the shell is as before it: they may have asked it to end at any error.

    The blank line is for a setup that ends with a backslash, which joins the next line to it.
    """
    return f"\n# From --setup:\n{job.setup.rstrip()}\n\nset +eu +o pipefail\n" if job.setup else ""


def _quoted(option: str) -> str:
    """An option with its value quoted as sbatch reads it: as a shell does, but a backslash escapes also in quotes."""
    match = _OPTION.fullmatch(option)
    assert match
    name, value, letter, letter_value = match.groups()
    if letter:
        return f"{letter} {_quoted_value(letter_value)}" if letter_value else letter
    return name if value is None else f"{name}={_quoted_value(value)}"


def _quoted_value(value: str) -> str:
    return shlex.quote(value.replace("\\", "\\\\"))


def _placed(folder: Path, log: str) -> list[str]:
    path = os.fspath(folder)
    if "\\" in path or not path.isprintable():
        raise InputError(f"Slurm cannot write logs into a folder of this name: {path!r}: choose another --out")
    logs = shlex.quote(path.replace("%", "%%") + "/logs/" + log)
    return ["--job-name=clipbatch", f"--chdir={shlex.quote(path)}", f"--output={logs}"]


def _header(directives: Sequence[str]) -> str:
    return "".join(f"#SBATCH {directive}\n" for directive in directives)


def _script(body: str) -> bytes:
    return b"#!/bin/bash\n" + os.fsencode(body)
