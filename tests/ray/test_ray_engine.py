"""`clipbatch run --engine ray` on a real cluster on this machine: nodes leave and join, and the run completes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import DEMO, Cli, start
from tests.support.corpus import make_folder

ROWS, SHARD = 1_200, 32
PATIENCE_S = 240.0
JOB = Path(__file__).parents[2] / "jobs" / "ray-job.sh"


class Cluster:
    """Nodes by address, in processes that `stop` ends. Its head works on nothing."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray-")  # short, since the paths of sockets are
        self.environment = {**os.environ, "RAY_TMPDIR": self.folder, "RAY_USAGE_STATS_ENABLED": "0"}
        self._nodes: set[str] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", Path(__file__).with_name("nodes.py")],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        said = self._process.stdout.readline().split()
        self.environment |= {"RAY_ADDRESS": said[0], "RAY_API_SERVER_ADDRESS": f"http://{said[1]}"}

    def add(self, address: str, *more: str) -> None:
        """Start a node, unless it is there already."""
        if address not in self._nodes:
            self._ask("add", address, *more)
            self._nodes.add(address)

    def kill(self, address: str) -> None:
        self._ask("kill", address)
        self._nodes.remove(address)

    def _ask(self, *words: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def processes(self, pattern: str) -> list[int]:
        """Processes of the cluster in whose command line `pattern` occurs."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"RAY_TMPDIR={self.folder}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if ours and re.search(pattern, (entry / "cmdline").read_bytes().decode(errors="replace")):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def stop(self) -> None:
        """End the cluster. Nothing of it is left a moment later."""
        self._process.communicate(timeout=PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S / 4
        while (left := self.processes("")) and time.monotonic() < deadline:
            time.sleep(0.2)
        what = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder)
        assert not left, what


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of images, a tenth of them bad."""
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 120, seed=5, bad_fraction=0.1)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    path = folder / "list.txt"
    path.write_text("".join(f"{names[number % len(names)]}\n" for number in range(ROWS)))
    return path


@pytest.fixture(scope="module")
def whole(cli: Cli, listed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of a run on this machine."""
    out = tmp_path_factory.mktemp("whole") / "out"
    cli("run", listed, *DEMO, "--shard-size", SHARD, "--out", out)
    return parts(out)


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.parquet")}


class Run:
    """A run on the cluster, in the background."""

    def __init__(self, cluster: Cluster, *arguments: object) -> None:
        self.process = start("run", *arguments, "--engine", "ray", env=cluster.environment)
        self.said: list[str] = []
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *failed: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_for(self, what: str, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, (what, self.said)
            time.sleep(0.05)

    def wait_for_line(self, text: str) -> None:
        self.wait_for(text, lambda: any(text in line for line in self.said))

    def end(self, code: int = 0) -> str:
        """What it printed, at its end with exit code `code`."""
        assert self.process.stdout
        printed = self.process.stdout.read()
        self._listening.join()
        assert self.process.wait(PATIENCE_S) == code, self.said
        return printed

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)


def test_nodes_are_killed_and_one_joins_in_the_middle_and_the_run_is_that_of_one_machine(
    cli: Cli, cluster: Cluster, listed: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cluster.add("127.0.0.3")
    cluster.add("127.0.0.4")
    with Run(cluster, listed, *DEMO, "--shard-size", SHARD, "--out", out, "--json") as run:
        run.wait_for("work", lambda: parts(out) and len(cluster.processes("clipbatch.workers.worker_main")) == 2)
        for pid in cluster.processes("clipbatch.workers.worker_main"):
            os.kill(pid, signal.SIGSTOP)  # so that they do not finish the run while a node starts
        cluster.kill("127.0.0.4")
        cluster.add("127.0.0.5")
        cluster.kill("127.0.0.3")  # so that it is the new one which does the rest
        report = json.loads(run.end())
    assert parts(out) == whole
    assert report["rows_done"] == ROWS
    assert 0 < report["this_run"]["rows"] <= ROWS  # a part may be there whose worker did not live to say so
    assert report["this_run"]["restarts"] == 2
    assert [worker["node"] for worker in report["this_run"]["workers"]] == ["127.0.0.5"]
    said = "".join(run.said)
    assert all(
        f"a worker on node {node} ended with its actor or its node" in said for node in ("127.0.0.3", "127.0.0.4")
    )
    assert json.loads((out / "report.json").read_text())["status"] == report["status"]
    assert [path for path in (out / "parts").iterdir() if path.suffix != ".parquet"] == []
    assert f"{ROWS} rows in 38 parts, every one there once" in cli("verify", out).stdout


def test_a_worker_dies_and_a_signal_comes_and_a_submitted_job_completes_the_run(
    cli: Cli, cluster: Cluster, listed: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    cluster.add("127.0.0.5")
    asked = ("--workers", 2)  # one of which the node has room for
    with Run(cluster, listed, *DEMO, *asked, "--shard-size", SHARD, "--out", out) as run:
        run.wait_for("a part", lambda: parts(out))
        (worker,) = cluster.processes("clipbatch.workers.worker_main")
        os.kill(worker, signal.SIGSEGV)
        run.wait_for_line("one by one")
        run.process.send_signal(signal.SIGTERM)
        run.end(75)
    assert "interrupted by SIGTERM" in run.said[-1]
    assert any("a worker on node 127.0.0.5 ended by SIGSEGV" in line for line in run.said)
    assert cluster.processes("clipbatch.(worker|probe)") == []
    assert 0 < len(parts(out)) < len(whole)
    text = JOB.read_text().replace("clipbatch run", f"{sys.executable} -m clipbatch run")
    for ours, theirs in (
        ("/data/photos", str(listed)),
        ("/data/labels.txt", f"cifar10 --model clipbatch-demo --shard-size {SHARD}"),
        ("/data/scores", str(out)),
        ("exec ray", f"exec {Path(sys.executable).with_name('ray')}"),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    made = subprocess.run(["sh", "-c", text], env=cluster.environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert f"{ROWS} images: " in made.stdout
    assert parts(out) == whole
    again = ("run", "--out", out, "--engine", "ray", "--shards", "0-3", "--retry-bad", "--max-bad", "1")
    assert "more than --max-bad allows (1)" in cli(*again, code=4, env=cluster.environment).stderr
    assert parts(out) == whole


def test_a_node_that_does_not_see_the_run_directory_or_the_input_is_named(
    cluster: Cluster, listed: Path, tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("mounting needs root")
    cluster.add("127.0.0.5")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for photos, out, what in (
        (listed, hidden / "out", f"the run directory {hidden}/out"),
        (hidden / listed.name, tmp_path / "out", f"the input: {hidden}"),
    ):
        command = (sys.executable, "-m", "clipbatch", "run", photos, *DEMO, "--engine", "ray", "--quiet", "--out", out)
        inner = f'mount -t tmpfs tmpfs {hidden} && cp -r {listed.parent}/. {hidden} && exec "$@"'
        made = subprocess.run(
            ["unshare", "--mount", "sh", "-c", inner, "sh", *map(str, command)],
            env=cluster.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 3, made.stderr
        (line,) = made.stderr.splitlines()
        assert f"node 127.0.0.5 does not see {what}" in line


def test_a_worker_gets_a_gpu_of_its_node(cli: Cli, cluster: Cluster, listed: Path, tmp_path: Path) -> None:
    """As Ray counts them: the machine that this one says it is has one."""
    run = ("run", listed, *DEMO, "--engine", "ray", "--quiet", "--out", tmp_path / "out")
    said = cli(*run, "--device", "cuda", code=3, env=cluster.environment).stderr
    assert "the Ray cluster has no node with a GPU and 1 core at present: start one, or give --workers N" in said
    cluster.add("127.0.0.6", "gpu")
    said = cli(*run, code=3, env=cluster.environment).stderr
    assert "node 127.0.0.6, GPU 0: " in said
