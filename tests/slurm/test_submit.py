"""`clipbatch submit slurm` and the templates of jobs/ on a real cluster: whatever happens, a run ends whole."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli
from tests.slurm import cluster as slurm
from tests.support.corpus import photo

JOBS = Path(__file__).parents[2] / "jobs"
SHARD = 64
ROWS = 4_000
SHARDS = 63


@pytest.fixture(scope="module")
def running() -> Iterator[slurm.Cluster]:
    with slurm.running() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: slurm.Cluster) -> Iterator[slurm.Cluster]:
    """Two idle nodes, whatever the test before did to them."""
    yield running
    running.run("scancel", "--user=root")
    for node in slurm.NODES:
        running.revive_node(node)
    running.wait_for("idle nodes", lambda: all(running.node_state(node) == "idle" for node in slurm.NODES))


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 4,000 rows, some of them bad: seconds of work for two tasks."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    for number in range(40):
        photo(rng, 480, 360).save(folder / f"{number:02}.jpg", quality=90)
    (folder / "07.jpg").write_bytes(b"<html>404</html>")
    path = folder / "list.txt"
    path.write_text("".join(f"{number % 40:02}.jpg\n" for number in range(ROWS)))
    return path


@pytest.fixture(scope="module")
def whole(cli: Cli, listed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of an undisturbed run on this machine."""
    out = tmp_path_factory.mktemp("whole") / "out"
    cli("run", listed, *DEMO, "--shard-size", SHARD, "--out", out)
    return parts(out)


@pytest.fixture
def submit(cli: Cli, listed: Path, cluster: slurm.Cluster) -> "Submit":
    return Submit(cli, listed, cluster)


class Submit:
    """Submits the listed images into a run directory; gives the numbers of the array and of the check."""

    def __init__(self, cli: Cli, listed: Path, cluster: slurm.Cluster) -> None:
        self._cli, self._listed, self._cluster = cli, listed, cluster

    def __call__(self, out: Path, *options: object) -> tuple[str, str]:
        made = json.loads(self.said(self._listed, *DEMO, "--shard-size", SHARD, "--json", "--out", out, *options))
        return made["array_job"], made["check_job"]

    def said(self, *arguments: object, code: int = 0) -> str:
        made = self._cli("submit", "slurm", *arguments, code=code, env=self._cluster.environment)
        return made.stdout if code == 0 else made.stderr


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.parquet")}


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def log(out: Path, name: str) -> str:
    return (out / "slurm" / "logs" / f"{name}.out").read_text()


def in_the_middle(cluster: slurm.Cluster, out: Path, *tasks: str) -> None:
    """Wait until all tasks run, and have published parts."""
    cluster.wait_for("tasks", lambda: all(cluster.state(task) == "RUNNING" for task in tasks))
    cluster.wait_for("parts", lambda: len(parts(out)) >= 3)
    assert all(cluster.state(task) == "RUNNING" for task in tasks)


def test_an_array_over_both_nodes_labels_all_and_the_check_behind_it_says_so(
    cluster: slurm.Cluster, submit: Submit, whole: dict[str, bytes], listed: Path, tmp_path: Path
) -> None:
    out = tmp_path / '100% of Zoë\'s "scores"'
    comment = """a 'b' "c" \\ #d"""
    wanted = ("--array", 3, "--gres", "gpu:1", "--device", "cpu", "--sbatch-option", f"--comment={comment}")
    own = ("--check-sbatch-option", "--time=7", "--check-sbatch-option=--mem=150M", "--check-sbatch-option=--comment=x")
    said = submit.said(listed, *DEMO, "--shard-size", SHARD, "--out", out, *wanted, *own)
    array, check = re.findall(r"(?:array|check) job (\d+)", said)
    assert f"squeue -j {array},{check}" in said
    assert "3 tasks for 63 open parts of 63" in said
    busy = submit.said(listed, "--labels", "cat,dog", "--overwrite", "--out", out, "--array", 3, code=3)
    assert f"array job {array} of this run is queued or running" in busy
    assert cluster.wait_for_end(check) == "COMPLETED"
    assert [cluster.state(f"{array}_{task}") for task in range(3)] == ["COMPLETED"] * 3
    assert {cluster.node_of(f"{array}_{task}") for task in range(3)} == set(slurm.NODES)
    assert cluster.run("squeue", "--noheader", "--states=all", f"--jobs={array}_0", "--format=%k") == comment
    checked = cluster.run("scontrol", "show", "--oneliner", "job", check)
    assert [word for word in ("TimeLimit=00:07:00", "MinMemoryNode=150M", "Comment=x") if word not in checked] == []
    assert sum("it did" in log(out, f"{array}_{task}") for task in range(3)) > 0  # the third begins after the others
    assert parts(out) == whole
    for task in range(3):
        assert f"task {array}_{task} on n" in log(out, f"{array}_{task}")
        assert ": done" in log(out, f"{array}_{task}")
    assert "4000 rows in 63 parts, every one there once" in log(out, f"check-{check}")
    assert (out / "report.html").is_file()
    before = cluster.run("squeue", "--noheader", "--states=all")
    assert "no part is open" in submit.said("--out", out, "--array", 3)
    assert cluster.run("squeue", "--noheader", "--states=all") == before


def test_a_task_that_is_killed_is_queued_again(
    cluster: slurm.Cluster, submit: Submit, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    array, check = submit(out, "--array", 2)
    in_the_middle(cluster, out, f"{array}_0", f"{array}_1")
    (victim,) = cluster.processes(f"-m clipbatch run --out {out} .*--rank=1")
    os.kill(victim, signal.SIGKILL)
    assert cluster.wait_for_end(check) == "COMPLETED"
    assert cluster.restarts(f"{array}_1") == 1
    assert "exit code 137: requeueing" in log(out, f"{array}_1")
    assert "requeued 1 times before" in log(out, f"{array}_1")
    assert parts(out) == whole


@pytest.mark.parametrize("cut_off", [False, True], ids=["its processes ended", "its processes still at work"])
def test_when_a_node_goes_down_its_task_is_done_on_the_other(
    cluster: slurm.Cluster, submit: Submit, whole: dict[str, bytes], tmp_path: Path, cut_off: bool
) -> None:
    out = tmp_path / "out"
    array, check = submit(out, "--array", 2)
    in_the_middle(cluster, out, f"{array}_0", f"{array}_1")
    (lost,) = (task for task in (f"{array}_0", f"{array}_1") if cluster.node_of(task) == "n2")
    if cut_off:  # then nobody is there whom Slurm could tell to end them
        cluster.kill_node_daemon("n2")
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=fire")
    if not cut_off:
        cluster.kill_node_daemon("n2")
    assert cluster.wait_for_end(check) == "COMPLETED"
    assert (cluster.node_of(lost), cluster.restarts(lost)) == ("n1", 1)
    assert "on n2: started" in log(out, lost)
    assert "on n1: started" in log(out, lost)
    assert parts(out) == whole


def test_an_array_that_is_cancelled_is_not_queued_again_and_the_next_one_takes_what_is_open(
    cluster: slurm.Cluster, submit: Submit, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    array, check = submit(out, "--array", 2)
    in_the_middle(cluster, out, f"{array}_0", f"{array}_1")
    cluster.run("scancel", array)
    assert cluster.wait_for_end(check) == "FAILED"
    assert cluster.exit_code(check) == 5
    assert [(cluster.state(f"{array}_{task}"), cluster.restarts(f"{array}_{task}")) for task in range(2)] == [
        ("CANCELLED", 0),
        ("CANCELLED", 0),
    ]
    found = parts(out)
    assert 3 <= len(found) < len(whole)
    assert found.items() <= whole.items()
    made = json.loads(submit.said("--out", out, "--array", 2, "--json"))
    assert (made["open_shards"], made["shards"], made["tasks"]) == (SHARDS - len(found), SHARDS, 2)
    assert cluster.wait_for_end(made["check_job"]) == "COMPLETED"
    assert parts(out) == whole


def test_a_task_that_is_to_be_preempted_or_out_of_time_ends_at_once_and_goes_on_later(
    cluster: slurm.Cluster, submit: Submit, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    array, check = submit(out, "--array", 2, "--partition", "main", "--requeues", 0)
    in_the_middle(cluster, out, f"{array}_0", f"{array}_1")
    pushed, late = sorted((f"{array}_0", f"{array}_1"), key=cluster.node_of)
    (worker,) = (pid for pid in cluster.processes("worker_main") if b"SLURMD_NODENAME=n2\0" in environment(pid))
    os.kill(worker, signal.SIGSTOP)  # or all would be done within the half minute until Slurm looks at time limits
    gone = tmp_path / "gone"
    wait = f"--wrap=while [ ! -e {gone} ]; do sleep 0.1; done"
    urgent = cluster.run(*("sbatch", "--parsable", "--partition=urgent", "--nodelist=n1", "--output=/dev/null", wait))
    cluster.run("scontrol", "update", f"jobid={late}", "timelimit=1")
    cluster.wait_for("the end of its time", lambda: cluster.restarts(late) == 1)
    cluster.run("scontrol", "update", f"jobid={late}", "timelimit=UNLIMITED")
    gone.touch()
    assert cluster.wait_for_end(urgent) == "COMPLETED"
    assert cluster.wait_for_end(check) == "COMPLETED"
    for task in (pushed, late):
        assert cluster.restarts(task) == 1
        assert "interrupted by SIGUSR1: finished parts stay" in log(out, task)
        assert "exit code 75: out of time or preempted; requeueing, which is not counted" in log(out, task)
    assert parts(out) == whole


def test_a_task_that_fails_is_queued_again_a_bounded_number_of_times(
    cluster: slurm.Cluster, submit: Submit, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    broken = "--export=ALL,PYTHONHOME=/nowhere"
    array, check = submit(out, "--array", 1, "--requeues", 1, "--sbatch-option", broken)
    assert cluster.wait_for_end(check) == "FAILED"
    assert (cluster.state(array), cluster.exit_code(array), cluster.restarts(array)) == ("FAILED", 1, 1)
    assert "not requeued, as it has failed 1 times before" in log(out, f"{array}_0")


def test_lines_of_a_setup_file_and_a_launcher_come_before_clipbatch(
    cluster: slurm.Cluster, submit: Submit, listed: Path, tmp_path: Path
) -> None:
    """As with conda: the node's clipbatch is the one that the lines put on the PATH."""
    out, tools, setup = tmp_path / "out", tmp_path / "tools", tmp_path / "setup.sh"
    tools.mkdir()
    (tools / "clipbatch").write_text(
        f'#!/bin/sh\necho "clipbatch $1, $FROM" >&2\nexec {sys.executable} -m clipbatch "$@"'
    )
    (tools / "clipbatch").chmod(0o755)
    setup.write_text(
        f"#!/bin/bash\r\nset -euo pipefail\r\nexport PATH={tools}:$PATH\r\necho set up on $SLURMD_NODENAME\r\n"
    )
    given = ("--limit", 2 * SHARD, "--array", 2, "--setup", setup, "--launcher", "env FROM=$SLURMD_NODENAME")
    array, check = submit(out, *given)
    assert cluster.wait_for_end(check) == "COMPLETED"
    for task in (f"{array}_0", f"{array}_1", f"check-{check}"):
        node = re.search("set up on (n[12])", log(out, task))
        assert node
        assert f"clipbatch {'verify' if 'check' in task else 'run'}, {node[1]}" in log(out, task)
    setup.write_text("module load nothing; conda() { return 1; }; conda\nset -e\nfalse\n")
    again = ("--array", 1, "--setup", setup, "--requeues", 0, "--limit", SHARD, "--overwrite")
    array, check = submit(out, *again)
    assert cluster.wait_for_end(check) == "FAILED"
    assert "exit code 1: not requeued" in log(out, f"{array}_0")
    setup.write_text("PATH=/usr/bin:/bin\n")
    array, check = submit(out, *again)
    assert cluster.wait_for_end(check) == "FAILED"
    assert "exit code 127: a command was not found here" in log(out, f"{array}_0")


def test_a_dry_run_leaves_nothing_and_a_refusal_is_final(
    cluster: slurm.Cluster, submit: Submit, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert submit(out, "--array", 1, "--dry-run") == (None, None)
    assert cluster.run("squeue", "--noheader") == ""
    assert not out.exists()
    array, _ = submit(out, "--array", 1, "--sbatch-option", "--hold")
    (manifest,) = (out / "manifest").iterdir()
    manifest.write_bytes(manifest.read_bytes() + b"edited")
    cluster.run("scontrol", "release", array)
    assert cluster.wait_for_end(array) == "FAILED"
    assert (cluster.exit_code(array), cluster.restarts(array)) == (3, 0)
    assert "was changed" in log(out, f"{array}_0")
    assert "exit code 3: refused, and would be refused again" in log(out, f"{array}_0")


def test_what_slurm_refuses_is_said(cluster: slurm.Cluster, submit: Submit, listed: Path, tmp_path: Path) -> None:
    given = (listed, *DEMO, "--shard-size", SHARD, "--out", tmp_path / "out")
    assert "allows at most 12 tasks in an array (MaxArraySize)" in submit.said(*given, "--array", 13, code=3)
    assert "invalid partition specified: nowhere" in submit.said(*given, "--array", 2, "--partition", "nowhere", code=3)
    assert "Invalid --mail-type" in submit.said(*given, "--array", 2, "--sbatch-option", "--mail-type=x", code=3)
    assert cluster.run("squeue", "--noheader") == ""
    assert list((tmp_path / "out" / "parts").iterdir()) == []


def template(name: str, folder: Path, changes: dict[str, str]) -> Path:
    """A copy of a file of jobs/, with what users change."""
    text = (JOBS / name).read_text()
    for ours, theirs in ({"clipbatch run": f"{sys.executable} -m clipbatch run"} | changes).items():
        assert ours in text
        text = text.replace(ours, theirs)
    (folder / name).write_text(text)
    return folder / name


def test_the_array_of_the_templates_finds_its_parts(
    cluster: slurm.Cluster, cli: Cli, listed: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cli("plan", listed, *DEMO, "--shard-size", SHARD, "--out", out)
    script = template(
        "slurm-array.sbatch",
        tmp_path,
        {"0-63": "0-1", "cpus-per-task=16": "cpus-per-task=1", "64G": "1G", "/data/scores": str(out)},
    )
    array = cluster.run("sbatch", "--parsable", f"--chdir={tmp_path}", script)
    assert [cluster.wait_for_end(f"{array}_{task}") for task in range(2)] == ["COMPLETED"] * 2
    assert parts(out) == whole
    for task, shards in enumerate((32, 31)):
        said = (tmp_path / f"clipbatch-{array}_{task}.out").read_text()
        assert f"rank {task} of 2: {shards} of its {shards} parts are done" in said


def test_the_job_of_the_templates_on_many_nodes_ends_when_warned_and_goes_on_when_submitted_again(
    cluster: slurm.Cluster, listed: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = f"{listed} {' '.join(DEMO)} --shard-size {SHARD}"
    script = template(
        "slurm-multinode.sbatch",
        tmp_path,
        {"nodes=4": "nodes=2", "per-node=8": "per-node=1", "cpus-per-task=16": "cpus-per-task=1", "512G": "1G"}
        | {"/data/photos --labels /data/labels.txt": given, "/data/scores": str(out)}
        | {"clipbatch plan": f"{sys.executable} -m clipbatch plan"}
        | {"clipbatch verify": f"{sys.executable} -m clipbatch verify"},
    )
    job = cluster.run("sbatch", "--parsable", f"--chdir={tmp_path}", script)
    in_the_middle(cluster, out, job)
    cluster.run("scancel", "--signal=USR1", job)
    assert cluster.wait_for_end(job) == "FAILED"
    said = (tmp_path / f"clipbatch-{job}.out").read_text()
    assert said.count("interrupted by SIGUSR1: finished parts stay") == 2
    assert "ended" not in said.split("interrupted")[0]  # the workers left it to their supervisors
    assert 3 <= len(parts(out)) < len(whole)
    job = cluster.run("sbatch", "--parsable", f"--chdir={tmp_path}", script)
    assert cluster.wait_for_end(job) == "COMPLETED"
    assert "4000 rows in 63 parts, every one there once" in (tmp_path / f"clipbatch-{job}.out").read_text()
    assert parts(out) == whole
