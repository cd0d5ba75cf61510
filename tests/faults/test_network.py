"""Where all is local, nobody is asked on the network."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, needs

HERE = Path(__file__).parent


@pytest.fixture
def library(tmp_path: Path) -> Path:
    library = tmp_path / "nosocket.so"
    needs("cc")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "nosocket.c", "-ldl"], check=True)
    return library


def test_a_local_run_opens_no_internet_socket(cli: Cli, library: Path, tmp_path: Path) -> None:
    environment = {"LD_PRELOAD": str(library), "HF_HUB_OFFLINE": "0"}
    cli("demo", "--out", tmp_path / "out", env=environment)
    cli("verify", tmp_path / "out", env=environment)
    opened = subprocess.run(
        [sys.executable, "-c", "import socket; socket.socket(socket.AF_INET)"], env=environment, check=False
    )
    assert opened.returncode == -9  # the library does see a socket
