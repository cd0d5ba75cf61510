"""NVIDIA's Triton Inference Server in a process of its own, from the wheel that `make setup` unpacks into .venv/triton.

Its Python backend gets an environment that has what the tests have, and `clipbatch` from where the tests have it; but
an older numpy, which this server's backend was built for, with a pyarrow that takes it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import clipbatch
from tests.conftest import needs

UNPACKED = Path(sys.prefix) / "triton"
SERVER = UNPACKED / "pytriton" / "tritonserver"
LIBRARIES = UNPACKED / "nvidia_pytriton.libs"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"
PATIENCE_S = 600.0


def needs_triton() -> None:
    """Skip a test where there is no server, no stub for this Python, or a library is missing."""
    stubs = SERVER / "python_backend_stubs" / PYTHON
    needs("tritonserver", path=str(SERVER / "bin"))
    needs(STUB, path=str(stubs))
    linked = subprocess.run(["ldd", stubs / STUB], env=_environment(), capture_output=True, text=True, check=True)
    needs(*(line.split()[0] for line in linked.stdout.splitlines() if "not found" in line))


def _environment() -> dict[str, str]:
    libraries = os.pathsep.join([str(LIBRARIES), sysconfig.get_config_var("LIBDIR")])
    return {**os.environ, "LD_LIBRARY_PATH": libraries}


def _make_environment(folder: Path, numpy: bool) -> None:
    """A virtual environment in which the backend's Python finds what this one finds. numpy: an older one first."""
    site = folder / "lib" / f"python{PYTHON}" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    places = [*([UNPACKED] if numpy else []), Path(clipbatch.__file__).parents[1]]
    places += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    (site / "tests.pth").write_text("".join(f"{place}\n" for place in places))


class TritonServer:
    """A running server. `address` is where it answers over HTTP."""

    def __init__(self, process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
        self.process, self.address, self._log = process, address, log

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Raises: AssertionError with the server's log where it ends before."""
        begun = time.monotonic()
        while True:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() - begun < PATIENCE_S, self.log()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{self.address}/v2/health/ready", timeout=10).close()
                return
            time.sleep(0.2)


@contextlib.contextmanager
def triton_server(
    repository: Path, scratch: Path, *, old_numpy: bool = True, **environment: str
) -> Iterator[TritonServer]:
    """Serve the model repository until the block ends. scratch: an empty folder.

    old_numpy: with a numpy that this server's Python backend can read, which is older than that of the tests.
    Raises: AssertionError with the server's log where it does not start.
    """
    backend = scratch / "backends" / "python"
    shutil.copytree(SERVER / "backends" / "python", backend)
    shutil.copy(SERVER / "python_backend_stubs" / PYTHON / STUB, backend)
    _make_environment(scratch / "environment", old_numpy)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(scratch / "environment" / "bin"), os.environ["PATH"]])
    command = [SERVER / "bin" / "tritonserver", "--model-repository", repository]
    command += ["--backend-directory", backend.parent, "--http-address", "127.0.0.1", "--http-port", str(port)]
    command += ["--allow-grpc", "false", "--allow-metrics", "false"]
    with open(scratch / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            env={**_environment(), "PATH": path, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = TritonServer(process, f"127.0.0.1:{port}", scratch / "log")
    try:
        server.wait_until_ready()
        yield server
        process.terminate()
        process.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
