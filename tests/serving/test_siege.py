"""The small form of `benchmarks/siege.py siege`: all attacks at once; healthy clients lose nothing but time."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from clipbatch import Classifier
from tests.conftest import needs
from tests.support.attacks import ATTACKS, DEADLY, Target, attacked_by_a_process, deadly_image, healthy
from tests.support.corpus import make_folder
from tests.support.serving import serving

SECONDS = float(os.environ.get("CLIPBATCH_SIEGE_S", "25"))


def test_healthy_requests_are_answered_rightly_under_siege(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("cc", "nice")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, library = tmp_path / "images", tmp_path / "deadly.so"
    make_folder(folder, 40, seed=4, bad_fraction=0.1)
    source = Path(__file__).parents[1] / "faults" / "deadly.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", root=folder) as classifier:
        expected = {row["uri"]: row for row in classifier.classify(names).to_pylist()}
    deadly = {
        "LD_PRELOAD": str(library),
        "DEADLY_BYTES": str(3 * DEADLY[0] * DEADLY[1]),
        "DEADLY_SIGNAL": str(int(signal.SIGSEGV)),
    }
    with serving(tmp_path / "spool", "--http", "0", "--root", folder, **deadly) as service:
        target = Target(service.url, folder, expected, tmp_path / "spool", deadly_image(tmp_path / "deadly.jpg"))
        with attacked_by_a_process(target):
            result = healthy(target, SECONDS, clients=2)
        assert (result.wrong, target.surprises) == ([], [])
        assert len(result.seconds) > 10
        assert len(target.counts) >= len(ATTACKS) - 3  # some come only after half a minute
        assert service.end(signal.SIGTERM) == 0
        assert not [line for line in service.said if "Traceback" in line]
