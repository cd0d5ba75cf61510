"""What `clipbatch submit slurm` submits, without Slurm. tests/slurm has a real one."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import slurm
from clipbatch.runs.slurm_scripts import MAX_LOG_BYTES, SlurmJob, array_script, check_script
from tests.conftest import DEMO, Cli
from tests.support.corpus import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 40, seed=9, bad_fraction=0)
    return folder


def test_a_dry_run_needs_no_slurm_and_says_what_it_would_submit(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--array", "64%2", "--gres", "gpu:2", "--time", "2:00:00", "--partition", "long,night", "--mem", "32G")
    tasks = ("--cpus-per-task", 8, "--sbatch-option", "--account=lab", "--sbatch-option", "--exclusive")
    settings = (*DEMO, "--shard-size", 8, "--precision", "fp32", "--max-bad", "5%", "--read-threads", 4)
    given = ("submit", "slurm", folder, *settings, *options, *tasks, "--requeues", 7, "--out", out, "--dry-run")
    said = cli(*given).stdout
    assert said.startswith(
        "would submit 5 tasks for 5 open parts of 5:\n"
        f"  sbatch {out}/slurm/array.sbatch\n"
        f"  sbatch --dependency=afterany:ARRAY_JOB {out}/slurm/check.sbatch\n"
        "  note         5 tasks and not 64, as a task does at least one part; smaller parts (--shard-size) would make"
        " more, but only in a new plan\n"
        "  note         the run is planned for GPUs (--gres, --device)\n\n"
    )
    made = json.loads(cli(*given, "--json").stdout)
    array, check = made["scripts"]["array.sbatch"], made["scripts"]["check.sbatch"]
    assert f"== check.sbatch\n{check}".rstrip() in said
    assert not out.exists()
    wanted = [line.removeprefix("#SBATCH ") for line in array.splitlines() if line.startswith("#SBATCH ")]
    common = ["--partition=long,night", "--account=lab", "--exclusive"]
    assert {"--array=0-4%2", "--gres=gpu:2", "--time=2:00:00", "--cpus-per-task=8", "--mem=32G", *common} <= {*wanted}
    assert {f"#SBATCH {option}" for option in common} <= {*check.splitlines()}
    assert "gres" not in check
    command = array[array.rindex(sys.executable) : array.rindex("&")].replace("\\\n", "")
    words = shlex.split(command)
    assert words[:7] == [sys.executable, "-m", "clipbatch", "run", "--out", str(out), "--shards"]
    assert words[8:] == [
        *("--world-size=5", "--read-threads=4", "--device=cuda", "--max-bad=5%", "--rank=$SLURM_ARRAY_TASK_ID"),
    ]
    assert '"$(failures)" -ge 7' in array
    assert made["device"] == "cuda"  # which is not here


def test_only_open_shards_are_submitted(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli("run", folder, *DEMO, "--shard-size", 4, "--shards", "2,5-7", "--out", out)
    again = ("submit", "slurm", "--out", out, "--array", 3, "--dry-run", "--json")
    before = sorted(out.rglob("*"))
    made = json.loads(cli(*again).stdout)
    assert made.pop("scripts").keys() == {"array.sbatch", "check.sbatch"}
    assert made == {
        **{"shards": 10, "open_shards": 6, "tasks": 3, "array_job": None, "check_job": None},
        **{"folder": str(out / "slurm"), "device": "cpu", "remark": None},
    }
    assert json.loads(cli(*again, "--shards", "0-2").stdout)["open_shards"] == 2
    other = json.loads(cli(*again, folder, *DEMO, "--shard-size", 4).stdout)
    assert other["open_shards"] == 6
    assert "other settings" in cli(*again, folder, *DEMO, "--shard-size", 8, code=3).stderr
    assert json.loads(cli(*again, folder, *DEMO, "--shard-size", 8, "--overwrite").stdout)["open_shards"] == 5
    assert sorted(out.rglob("*")) == before


def test_the_device_is_what_the_tasks_ask_for(cli: Cli, folder: Path, tmp_path: Path) -> None:
    for device, option in (
        ("cuda", "--gres gpu:1"),
        ("cuda", "--gres=lscratch:10,gpu:1"),
        ("cuda", "--tres-per-task=gres/gpu:1"),
        ("cuda", "-G1"),
        ("cpu", "--tres-per-task=cpu=4"),
        ("cpu", "--comment=see --gres=gpu:1"),
    ):
        assert SlurmJob(array="2", sbatch_option=(option,)).device == device, option
    given = ("submit", "slurm", folder, *DEMO, "--out", tmp_path / "out", "--array", 2, "--dry-run", "--json")
    for device, options in (
        ("cpu", []),
        ("cpu", ["--gres", "lscratch:10"]),
        ("cuda", ["--gres", "lscratch:10,gpu:a100:2"]),
        ("cuda", ["--sbatch-option=--gpus-per-task=1"]),
        ("cuda", ["--sbatch-option", "-G 1"]),
        ("cpu", ["--gres", "gpu:1", "--device", "cpu"]),
    ):
        made = json.loads(cli(*given, *options).stdout)
        assert (made["device"], made["remark"]) == (device, None)
        assert f"--device={device}" in made["scripts"]["array.sbatch"]
    cli("plan", folder, *DEMO, "--device", "cuda", "--out", tmp_path / "out")
    remark = json.loads(cli("submit", "slurm", "--out", tmp_path / "out", *given[-4:]).stdout)["remark"]
    assert remark.startswith("this run was planned for a GPU (fp16, batches of 256, decoder dali) and runs on a CPU")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--array", "0"], "array '0' is not a number of tasks"),
        (["--array", "0-63"], "array '0-63' is not a number of tasks"),
        (["--array", "8%0"], "array '8%0'"),
        (["--array", "8", "--gres", "gpu:1\n#SBATCH --wrap=x"], "is not a value that sbatch accepts"),
        (["--array", "8", "--sbatch-option", "account=lab"], "sbatch_option 'account=lab' is not an option"),
        (["--array", "8", "--sbatch-option", "--a=b\nrm -rf /"], "is not an option of sbatch"),
        (["--array", "8", "--check-sbatch-option", "mem=8G"], "check_sbatch_option 'mem=8G' is not an option"),
        (["--array", "8", "--launcher", "env 'A=b"], "is not the beginning of a command: No closing quotation"),
        (["--array", "8", "--launcher", "apptainer exec setup/image.sif"], "image.sif is relative to this folder"),
        (["--array", "8", "--launcher", "setup/wrap.sh"], "setup/wrap.sh is relative to this folder"),
        (["--array", "8", "--launcher", "env A=(b"], "bash: line 1: syntax error near"),
        (["--array", "8", "--launcher", "cat <<END"], "bash: line 1: warning: here-document"),
        (["--array", "8", "--setup", "nowhere.sh"], "nowhere.sh"),
        (["--array", "8", "--setup", "setup/directive.sh"], "line 2: Slurm ignores '#SBATCH --mem=4G' there"),
        (["--array", "8", "--setup", "setup/broken.sh"], "broken.sh is not a piece of bash"),
        (["--array", "8", "--setup", "setup/unfinished.sh"], "here-document at line 1 delimited by end-of-file"),
        (["--array", "8", "--requeues", "-1"], "requeues -1 is out of range"),
        (["--array", "8", "--world-size", "4"], "--world-size is for runs that you start yourself"),
        (["--array", "8", "--gpus", "all"], "--gres gpu:N requests"),
        (["--array", "8", "--shards", "7"], "there is no part 7"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    cli: Cli, folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    given = ("submit", "slurm", folder, *DEMO, "--out", tmp_path / "out", "--dry-run", *options)
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup" / "image.sif").touch()
    (tmp_path / "setup" / "wrap.sh").touch()
    (tmp_path / "setup" / "unfinished.sh").write_text("cat >x <<END\nmodule load cuda\n")
    (tmp_path / "setup" / "directive.sh").write_text("module load cuda\n#SBATCH --mem=4G\n")
    (tmp_path / "setup" / "broken.sh").write_text("if true; then\n")
    error = cli(*given, code=3, cwd=tmp_path).stderr
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "slurm").exists()


@pytest.mark.parametrize("launcher", ["srun #", "srun # --mpi x", "srun;", "srun | ", "env A=b ||", "srun&", "srun >"])
def test_a_launcher_that_would_not_start_clipbatch_is_refused(launcher: str) -> None:
    with pytest.raises(InputError, match=r"ends in .*(hide|not start) clipbatch"):
        slurm.check_launcher(launcher)


@pytest.mark.parametrize("launcher", ["cd / &&", "env 'A=;'", r"env A=\;", "env A=b#", "env '#=b'", "cd /; env A=b"])
def test_a_launcher_may_have_operators_before_its_end(launcher: str) -> None:
    slurm.check_launcher(launcher)
    said = subprocess.run(["bash", "-c", f"{launcher} \\\n echo started"], capture_output=True, text=True, check=True)
    assert said.stdout == "started\n"


def test_a_setup_may_turn_on_the_patterns_of_bash(tmp_path: Path) -> None:
    lines = "shopt -s extglob\nfor file in /opt/@(a|b)/env.sh; do . $file; done\n"
    (tmp_path / "setup.sh").write_text(lines)
    assert slurm.setup_lines(tmp_path / "setup.sh") == lines


def test_without_slurm_nothing_is_planned(cli: Cli, folder: Path, tmp_path: Path) -> None:
    given = ("submit", "slurm", folder, *DEMO, "--out", tmp_path / "out", "--array", 2)
    assert "there is no sbatch on the PATH" in cli(*given, code=3, env={"PATH": str(tmp_path)}).stderr
    assert not (tmp_path / "out").exists()


def test_a_run_in_a_store_has_its_scripts_where_the_user_says(
    cli: Cli, bucket: str, folder: Path, tmp_path: Path
) -> None:
    out = f"{bucket}/slurm"
    given = ("submit", "slurm", folder, *DEMO, "--shard-size", 32, "--out", out, "--array", 2, "--dry-run")
    assert "give --slurm-dir FOLDER" in cli(*given, code=3).stderr
    made = json.loads(cli(*given, "--slurm-dir", "here", "--json", cwd=tmp_path).stdout)
    assert made["folder"] == str(tmp_path / "here")
    assert f"--out {out}" in made["scripts"]["array.sbatch"]
    assert f"report {out}" in made["scripts"]["check.sbatch"]
    assert not (tmp_path / "here").exists()
    assert not RunDir(out).exists()


def test_a_folder_in_which_slurm_cannot_write_logs_is_refused(tmp_path: Path) -> None:
    for name in ("back\\slash", "new\nline"):
        with pytest.raises(InputError, match="Slurm cannot write logs"):
            check_script("s3://bucket/run", tmp_path / name, SlurmJob(array="1"))


@pytest.mark.parametrize("name", ["plain", "with spaces", "$(touch harm)", "it's", 'a"b', "`x`;#y", "-n"])
def test_the_scripts_are_bash_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    plain, rich = SlurmJob(array="4"), SlurmJob(array="4", setup="module load x\n", launcher="env A='b c'")
    for job in (plain, rich):
        array = array_script(str(run), run / "slurm", job, run / "shards.txt", 4, ["--max-bad=5%"])
        for script in (array, check_script(str(run), run / "slurm", job)):
            subprocess.run(["bash", "-n"], input=script, check=True)
    array = array_script(str(run), run / "slurm", plain, run / "shards.txt", 4, ["--max-bad=5%"])
    command = array.decode().split("\n" + sys.executable)[1].split("&")[0]
    assert str(run) in shlex.split(command.replace("\\\n", ""))
    broken = f"{run}\nand more"
    array = array_script(broken, run / "slurm", plain, run / "shards.txt", 4, [])
    assert f" status {shlex.quote(broken)} --json" in array.decode()


@pytest.mark.parametrize(
    ("setup", "run_ends_with", "code", "requeued", "said"),
    [
        (":", 0, 0, False, "done"),
        (":", 3, 3, False, "refused, and would be refused again"),
        (":", 1, 1, True, "failed 1 times"),
        ("exit 0", 0, 1, True, "before the run has begun"),
        ("exit 3", 0, 3, True, "failed 1 times"),
        ("echo \\", 0, 0, False, "done"),
        ("task=train log=/tmp/my.log run=7", 1, 1, True, "task 7_0 on n1: exit code 1: requeueing"),
        ("task=train; exit 3", 0, 3, True, "task 7_0 on n1: exit code 3: requeueing"),
    ],
)
def test_only_the_exit_code_of_the_run_says_that_a_task_is_done_or_refused(
    tmp_path: Path, setup: str, run_ends_with: int, code: int, requeued: bool, said: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "slurm" / "logs").mkdir(parents=True)
    for name, line in (
        ("squeue", "echo RUNNING"),
        ("scontrol", f"touch {tmp_path}/requeued"),
        ("clipbatch", f"exit {run_ends_with}"),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    named = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURMD_NODENAME": "n1"}
    job, path = SlurmJob(array="1", setup=f"{setup}\n"), {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    array = array_script("/run", tmp_path / "slurm", job, tmp_path / "shards.txt", 1, [])
    ended = subprocess.run(["bash"], input=array, env=named | path, capture_output=True)
    assert (ended.returncode, (tmp_path / "requeued").exists()) == (code, requeued), ended
    assert said in ended.stdout.decode()
    assert (tmp_path / "slurm" / "logs" / "7_0.failures").exists() == requeued
    assert b"pipefail" not in ended.stdout  # a backslash at the end of the setup does not join our next line to it
    check = subprocess.run(["bash"], input=check_script("/run", tmp_path / "slurm", job), env=path, capture_output=True)
    assert check.returncode == code, check


def test_logs_of_the_last_ten_arrays_are_kept_and_a_long_log_is_shortened(tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    (folder / "logs").mkdir(parents=True)
    for array in range(100, 124, 2):
        slurm._record(folder, f"array {array}: 2 tasks for 2 open parts of 2")
        slurm._record(folder, f"check {array + 1}, after array {array}")
        for name in (f"{array}_0.out", f"{array}_0.failures", f"check-{array + 1}.out"):
            (folder / "logs" / name).touch()
        (folder / f"shards-20260101T0000{array - 100:02}-1.txt").touch()
    (folder / "logs" / "mine.txt").touch()
    slurm._remove_old(folder)
    kept = {path.name for path in (folder / "logs").iterdir()}
    assert {name for name in kept if name.startswith(("100", "102", "check-101", "check-103"))} == set()
    assert len(kept) == 3 * slurm.MAX_ARRAYS + 1
    assert len(list(folder.glob("shards-*.txt"))) == slurm.MAX_ARRAYS
    (folder / "logs" / "7_0.out").write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    script = array_script("/run", folder, SlurmJob(array="1"), folder / "shards.txt", 1, []).decode()
    head = script[: script.index("parts()")]
    named = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURMD_NODENAME": "n1", "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-c", head], env=named, check=True)
    assert (folder / "logs" / "7_0.out").stat().st_size == MAX_LOG_BYTES // 2
