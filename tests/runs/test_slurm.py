"""What `clipbatch submit slurm` submits, without Slurm. tests/slurm has a real one."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clipbatch.errors import InputError
from clipbatch.runs.slurm_scripts import SlurmJob, array_script, check_script
from tests.conftest import DEMO, Cli
from tests.support.corpus import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 40, seed=9, bad_fraction=0)
    return folder


def scripts(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (out / "slurm").glob("*.sbatch")}


def test_a_dry_run_needs_no_slurm_and_says_what_it_would_submit(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--array", "64%2", "--gres", "gpu:2", "--time", "2:00:00", "--partition", "long,night", "--mem", "32G")
    tasks = ("--cpus-per-task", 8, "--sbatch-option", "--account=lab", "--sbatch-option", "--exclusive")
    settings = (*DEMO, "--shard-size", 8, "--precision", "fp32", "--max-bad", "5%", "--read-threads", 4)
    said = cli("submit", "slurm", folder, *settings, *options, *tasks, "--requeues", 7, "--out", out, "--dry-run")
    assert said.stdout.splitlines() == [
        "would submit 5 tasks for 5 open shards of 5:",
        f"  sbatch {out}/slurm/array.sbatch",
        f"  sbatch --dependency=afterany:ARRAY_JOB {out}/slurm/check.sbatch",
    ]
    array, check = scripts(out)["array.sbatch"], scripts(out)["check.sbatch"]
    wanted = [line.removeprefix("#SBATCH ") for line in array.splitlines() if line.startswith("#SBATCH ")]
    common = ["--partition=long,night", "--account=lab", "--exclusive"]
    assert {"--array=0-4%2", "--gres=gpu:2", "--time=2:00:00", "--cpus-per-task=8", "--mem=32G", *common} <= {*wanted}
    assert {f"#SBATCH {option}" for option in common} <= {*check.splitlines()}
    assert "gres" not in check
    command = array[array.index(sys.executable) : array.index("&")].replace("\\\n", "")
    (shards,) = (out / "slurm").glob("shards-*.txt")
    assert shlex.split(command) == [
        *(sys.executable, "-m", "clipbatch", "run", "--out", str(out), "--shards", str(shards), "--world-size=5"),
        *("--read-threads=4", "--device=cuda", "--max-bad=5%", "--rank=$SLURM_ARRAY_TASK_ID"),
    ]
    assert '"$restarts" -ge 7' in array
    assert shards.read_text() == "0-4\n"
    assert (
        json.loads((out / "run.json").read_text())["settings"]["decoder"] == "dali"
    )  # planned for a GPU that is not here


def test_only_open_shards_are_submitted(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli("run", folder, *DEMO, "--shard-size", 4, "--shards", "2,5-7", "--out", out)
    again = ("submit", "slurm", "--out", out, "--array", 3, "--dry-run", "--json")
    made = json.loads(cli(*again).stdout)
    assert made == {
        **{"shards": 10, "open_shards": 6, "tasks": 3, "array_job": None, "check_job": None},
        "folder": str(out / "slurm"),
    }
    (listed,) = (out / "slurm").glob("shards-*.txt")
    assert listed.read_text() == "0-1\n3-4\n8-9\n"
    assert json.loads(cli(*again, "--shards", "0-2").stdout)["open_shards"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--array", "0"], "array '0' is not a number of tasks"),
        (["--array", "0-63"], "array '0-63' is not a number of tasks"),
        (["--array", "8%0"], "array '8%0'"),
        (["--array", "8", "--gres", "gpu:1\n#SBATCH --wrap=x"], "is not a value that sbatch accepts"),
        (["--array", "8", "--sbatch-option", "account=lab"], "sbatch_option 'account=lab' is not an option"),
        (["--array", "8", "--sbatch-option", "--a=b\nrm -rf /"], "is not an option of sbatch"),
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
    error = cli(*given, code=3).stderr
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "slurm").exists()


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
    cli(*given, "--slurm-dir", "here", cwd=tmp_path)
    assert f"--out {out}" in (tmp_path / "here" / "array.sbatch").read_text()
    assert f"report {out}" in (tmp_path / "here" / "check.sbatch").read_text()
    assert json.loads(cli("status", out, "--json").stdout)["parts"] == 2


def test_a_folder_in_which_slurm_cannot_write_logs_is_refused(tmp_path: Path) -> None:
    for name in ("back\\slash", "new\nline"):
        with pytest.raises(InputError, match="Slurm cannot write logs"):
            check_script("s3://bucket/run", tmp_path / name, SlurmJob(array="1"))


@pytest.mark.parametrize("name", ["plain", "with spaces", "$(touch harm)", "it's", 'a"b', "`x`;#y", "-n"])
def test_the_scripts_are_bash_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    array = array_script(str(run), run / "slurm", SlurmJob(array="4"), run / "shards.txt", 4, ["--max-bad=5%"])
    for script in (array, check_script(str(run), run / "slurm", SlurmJob(array="4"))):
        subprocess.run(["bash", "-n"], input=script, check=True)
    command = array.decode().split("\n" + sys.executable)[1].split("&")[0]
    assert str(run) in shlex.split(command.replace("\\\n", ""))
