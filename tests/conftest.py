"""What the end-to-end tests share: the command line as users start it, and the parts as one table."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from clipbatch.config import hardware
from clipbatch.rundir import copies, records
from tests.support.corpus import photo
from tests.support.servers import Buckets

SHARED_PHOTOS = Path(__file__).parents[2] / "shared" / "photos"
DEMO = ("--labels", "cifar10", "--model", "clipbatch-demo")
FACTS: dict[str, Any] = {
    **{"name": "RN50", "weights_sha256": "ab" * 32, "height": 64, "width": 64, "mean": [0.5, 0.25, 0.5], "fill": 0},
    **{"std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest", "logit_scale": 100.0},
    **{"logit_bias": None, "score": "softmax"},
}
"""Facts of a model, as the first worker of a run records them."""
collect_ignore_glob = [] if hardware.has_gpu() else ["gpu/*"]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process that is started compiles clipbatch anew
for _signum in (signal.SIGINT, signal.SIGHUP):  # ignored in the background and under nohup, which children inherit
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, signal.SIG_DFL)


def needs(*programs: str, path: str | None = None) -> None:
    """Skip a test where `programs` are missing, which pip does not bring; under `.ci/run`, which does, it fails."""
    missing = [program for program in programs if not shutil.which(program, path=path)]
    if missing:
        (pytest.fail if "CLIPBATCH_SKIP_NOTHING" in os.environ else pytest.skip)(f"needs {', '.join(missing)}")


def start(*args: object, **more: Any) -> "subprocess.Popen[str]":
    """`clipbatch ARGS` in a process of its own."""
    command = [sys.executable, "-m", "clipbatch", *map(os.fspath, map(_text, args))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def _text(arg: object) -> str:
    return arg if isinstance(arg, str) else str(arg)


def error_in(stderr: str) -> str:
    """The error in one line that ended a command, after the lines of its log."""
    *log, error = stderr.splitlines(keepends=True)
    assert error.startswith("clipbatch: "), stderr
    assert all(re.match(r"\d{4}-\S+ (INFO|WARNING|ERROR) ", line) for line in log), stderr
    return error


def children_of(pid: int) -> Iterator[int]:
    """The processes that `pid` has started and that are still there."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Runs `clipbatch ARGS`, checks the exit code (`code`, default 0), returns the finished process."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*args: object, code: int = 0, stdin: str | None = None, **more: Any) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1", **more.pop("env", {})}
        pipe = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        process = start(*args, stdin=pipe, env=environment, **more)
        try:
            out, err = process.communicate(stdin, timeout=300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """As `cli`, in this process, where models stay loaded."""
    from tests.support.warm import Warm

    return Warm({"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("warm")), "HF_HUB_OFFLINE": "1"})


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a JSON file of a run directory, and its copy, as if it had been written with what `change` makes of it."""
    value = json.loads(path.read_text())
    change(value)
    del value["sha256"]
    for target in (path, path.parent / copies.FOLDER / path.name):
        target.write_bytes(records.seal(json.dumps(value).encode()))


def rows(out: Path) -> pa.Table:
    """All rows of a run, in the order of its parts."""
    return pa.concat_tables([pq.read_table(part) for part in sorted((out / "parts").glob("part-*.parquet"))])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs: the shared ones where they are, else drawn ones."""
    if SHARED_PHOTOS.is_dir():
        return SHARED_PHOTOS
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(64):
        photo(rng, *((640, 480) if number % 3 else (427, 640))).save(folder / f"{number:03d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pafs.S3FileSystem]:
    """A server that speaks S3 on this machine, which every process of the tests finds by the usual environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("s3") / "log"
    with pytest.MonkeyPatch.context() as patch, open(log, "wb") as file:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=file,
            stderr=file,
        )
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.1)
            yield pafs.S3FileSystem(
                endpoint_override=url,
                region="us-east-1",
                access_key="key",
                secret_key="secret",
                allow_bucket_creation=True,
            )
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def bucket(s3: pafs.S3FileSystem) -> str:
    """The url of a new, empty bucket of `s3`: no test finds another's run there."""
    name = f"bucket-{uuid.uuid4().hex}"
    s3.create_dir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def hostile_run(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory full of hostile names, with its `report.html`; not to be changed."""
    from tests.support.hostile import make_run

    out = make_run(warm, tmp_path_factory.mktemp("hostile"))
    warm("report", out, "--examples", 50)
    return out


@pytest.fixture
def here(store: Buckets, monkeypatch: pytest.MonkeyPatch) -> Buckets:
    """The module's store, with its environment in this process."""
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    return store
