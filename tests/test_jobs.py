"""The files that users copy do what they say."""

import subprocess
import sys
from pathlib import Path

from clipbatch import labels
from clipbatch.config import from_flat, read_toml
from conftest import rows

ROOT = Path(__file__).parents[1]


def test_the_nightly_cron_line_labels_a_folder_in_silence(photos: Path, tmp_path: Path) -> None:
    (line,) = [line for line in (ROOT / "jobs" / "clipbatch.cron").read_text().splitlines() if line[:1].isdigit()]
    schedule, command = line.split(maxsplit=6)[:5], line.split(maxsplit=6)[6]
    assert len(schedule) == 5
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "run.toml").write_text('model = "clipbatch-demo"\nlimit = 20\n')
    (tmp_path / "scores").mkdir()
    for ours, theirs in (
        ("\\%", "%"),
        ("/etc/clipbatch", str(tmp_path)),
        ("/data/photos", str(photos)),
        ("/data/scores", f"{tmp_path}/scores"),
        ("clipbatch run", f"{sys.executable} -m clipbatch run"),
    ):
        assert ours in command
        command = command.replace(ours, theirs)
    made = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True)
    assert (made.stdout, made.stderr) == ("", "")
    (out,) = (tmp_path / "scores").iterdir()
    assert rows(out).num_rows == 20


def test_the_settings_to_start_from_are_valid_and_so_are_their_labels() -> None:
    settings = from_flat(read_toml(ROOT / "configs" / "run.toml"))
    assert len(labels.load(settings.labels).names) == 27
    assert settings.bad_allowed(1000) == 50
