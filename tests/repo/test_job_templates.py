"""The files that users copy do what they say."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import urllib3
import yaml

from clipbatch.config import from_flat, labels, read_toml
from tests.conftest import Cli, needs, rows
from tests.support.serving import Service, answer, drop

ROOT = Path(__file__).parents[2]


def localised(command: str, photos: Path, folder: Path) -> str:
    """A command of `jobs/` with the paths of this test."""
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / "run.toml").write_text('model = "clipbatch-demo"\n')
    for ours, theirs in (
        ("/etc/clipbatch", str(folder)),
        ("/var/lib/clipbatch", str(folder)),
        ("/data/photos", str(photos)),
        ("/data/labels.txt", f"{folder}/labels.txt --config {folder}/run.toml"),
        ("/data/scores", f"{folder}/scores"),
        ("/usr/local/bin/", ""),
        (":8000", ":0"),
        ("clipbatch run", f"{sys.executable} -m clipbatch run"),
        ("clipbatch serve", f"{sys.executable} -m clipbatch serve"),
    ):
        command = command.replace(ours, theirs)
    return command


def test_the_nightly_cron_line_labels_what_is_new_and_prints_one_line(photos: Path, tmp_path: Path) -> None:
    (line,) = [line for line in (ROOT / "jobs" / "clipbatch.cron").read_text().splitlines() if line[:1].isdigit()]
    *schedule, user, command = line.split(maxsplit=6)
    assert (len(schedule), user) == (5, "clipbatch")
    some = tmp_path / "photos"
    some.mkdir()
    for path in sorted(photos.glob("*.jpg"))[:8]:
        (some / path.name).symlink_to(path)
    for said in ("8 images (8 new, 0 changed, 0 known): 8 ok; 8 labelled in", "nothing new, 8 images known"):
        made = subprocess.run(
            ["sh", "-c", localised(command, some, tmp_path)], check=True, capture_output=True, text=True
        )
        (told,) = made.stdout.splitlines()
        assert said in told
        assert made.stderr == ""
    assert rows(tmp_path / "scores" / "increment-00001").num_rows == 8


def test_the_systemd_units_are_valid_and_start_a_command_that_runs(photos: Path, tmp_path: Path) -> None:
    needs("systemd-analyze")
    text = (ROOT / "jobs" / "clipbatch.service").read_text()
    (tmp_path / "clipbatch.service").write_text(text.replace("/usr/local/bin/clipbatch", "/bin/true"))
    (tmp_path / "clipbatch.timer").write_text((ROOT / "jobs" / "clipbatch.timer").read_text())
    units = [str(tmp_path / "clipbatch.service"), str(tmp_path / "clipbatch.timer")]
    made = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    ours = [line for line in made.stderr.splitlines() if "clipbatch" in line]
    assert (made.returncode, ours) == (0, []), made.stderr
    (command,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStart=")]
    subprocess.run(shlex.split(localised(command, photos, tmp_path)), check=True, capture_output=True)
    assert "clipbatch_last_success_timestamp_seconds" in (tmp_path / "clipbatch.prom").read_text()


def test_the_unit_of_the_service_is_valid_and_starts_one_that_answers(photos: Path, tmp_path: Path) -> None:
    needs("systemd-analyze")
    text = (ROOT / "jobs" / "clipbatch-serve.service").read_text()
    unit = tmp_path / "clipbatch-serve.service"
    unit.write_text(text.replace("/usr/local/bin/clipbatch", "/bin/true"))
    made = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    ours = [line for line in made.stderr.splitlines() if "clipbatch" in line]
    assert (made.returncode, ours) == (0, []), made.stderr
    (command,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStart=")]
    process = subprocess.Popen(shlex.split(localised(command, photos, tmp_path)), stderr=subprocess.PIPE, text=True)
    try:
        service = Service(process)
        name = min(path.name for path in photos.glob("*.jpg"))
        answered = urllib3.request("POST", f"{service.url}/classify", json={"paths": [name]}).json()
        assert [row["status"] for row in answered["rows"]] == ["ok"]
        drop(tmp_path / "spool", "job.txt", [name])
        assert answer(tmp_path / "spool", "job.txt")["status"] == {"ok": 1}
        assert service.end(signal.SIGTERM) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_kubernetes_job_is_valid_and_its_pods_share_the_run(photos: Path, tmp_path: Path, cli: Cli) -> None:
    job = yaml.safe_load((ROOT / "jobs" / "kubernetes.yaml").read_text())
    kubernetes_validate.validate(job, "1.31", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    pods = job["spec"]["completions"]
    assert container["command"][-2:] == ["--world-size", str(pods)]
    command = localised(shlex.join(container["command"]), photos, tmp_path)
    small = shlex.split(command.replace("--world-size 8", "--world-size 2 --shard-size 32 --limit 100"))
    for index in range(2):
        environment = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
        subprocess.run(small, check=True, capture_output=True, env=environment)
    assert "in 4 parts" in cli("verify", tmp_path / "scores").stdout


def test_the_settings_to_start_from_are_valid_and_so_are_their_labels() -> None:
    settings = from_flat(read_toml(ROOT / "configs" / "run.toml"))
    assert len(labels.load(settings.labels).names) == 27
    assert settings.bad_allowed(1000) == 50
