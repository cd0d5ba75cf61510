"""The files that users copy do what they say."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import urllib3
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import clipbatch
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
    assert settings.launch.bad_allowed(1000) == 50


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "containers" / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def argument(instruction: str) -> str:
    """The argument of the last `instruction` of the Dockerfile."""
    return [rest for word, rest in dockerfile() if word == instruction][-1]


def test_what_goes_into_the_image_is_enough_to_build_clipbatch(tmp_path: Path) -> None:
    ignored, *kept = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert ignored == "*"
    for word, rest in dockerfile():
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                assert f"!{name}" in kept
                place = tmp_path / target.strip("/") / ("" if target.endswith("/") else ".")
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, place, symlinks=True)
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, place)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "-w", tmp_path, tmp_path / "src"], check=True)
    (wheel,) = tmp_path.glob("clipbatch-*.whl")
    subprocess.run(["python3", "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    installed = tmp_path / "site" / "clipbatch"
    assert (installed / "data" / "label_sets").is_dir()
    shipped = {path.relative_to(installed) for path in installed.rglob("*.py")}
    ours = ROOT / "pipeline" / "clipbatch"
    assert shipped == {path.relative_to(ours) for path in ours.rglob("*.py")}


def test_the_image_pins_what_clipbatch_needs_and_no_torch_where_another_is_asked_for() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {canonicalize_name(Requirement(line).name) for line in pins.splitlines()}
    here = [need for need in map(Requirement, project["dependencies"]) if not need.marker or need.marker.evaluate()]
    assert {canonicalize_name(need.name) for need in here} <= pinned
    (step,) = [rest for _, rest in dockerfile() if "sed -i" in rest]
    (sed,) = re.findall(r"sed -i (-E '[^']+') /src/constraints.txt", step)
    left = subprocess.run(["sed", *shlex.split(sed)], input=pins, capture_output=True, text=True, check=True).stdout
    gone = {line.partition("==")[0] for line in {*pins.splitlines()} - {*left.splitlines()}}
    assert gone == {"torch", "torchvision", "triton", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit"}


def test_the_image_runs_clipbatch_not_as_root_and_asks_the_driver_for_video() -> None:
    settings = dict(word.split("=", 1) for word in shlex.split(argument("ENV")))
    assert settings["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility,video"
    user, steps = argument("USER"), [rest for _, rest in dockerfile()]
    uid = re.search(r"useradd .*--uid (\d+) " + user, " ".join(steps))
    assert uid
    assert argument("ENTRYPOINT") == '["clipbatch"]'
    pod = yaml.safe_load((ROOT / "jobs" / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == int(uid[1])
    (container,) = pod["containers"]
    assert settings["HF_HOME"] in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": settings["NVIDIA_DRIVER_CAPABILITIES"]} in container["env"]


def test_one_image_is_named_wherever_one_is_named_and_make_needs_none() -> None:
    places = [*(ROOT / "containers").iterdir(), *(ROOT / "jobs").iterdir(), ROOT / "docs" / "guides" / "installing.md"]
    named = {
        path.name: set(re.findall(r"clipbatch[:-](\d[\w.]*?)(?:\.tar|\.sif)?(?=[\s\"`]|$)", path.read_text()))
        for path in places
    }
    users = {"Dockerfile", "clipbatch.def", "kubernetes.yaml", "slurm-array.sbatch", "slurm-multinode.sbatch"}
    assert {name for name, versions in named.items() if versions} == users | {"installing.md"}
    assert set().union(*named.values()) == {clipbatch.__version__}
    assert not re.search("docker|podman|buildah|apptainer|containers", (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("name", ["slurm-array.sbatch", "slurm-multinode.sbatch"])
def test_the_commands_of_the_slurm_files_can_be_put_inside_an_image(
    name: str, photos: Path, tmp_path: Path, cli: Cli
) -> None:
    small = f"{photos} --limit 8 --labels cat,dog --model clipbatch-demo --device cpu"
    text = (ROOT / "jobs" / name).read_text().replace("/data/scores", f"{tmp_path}/scores")
    text = text.replace("/data/photos --labels /data/labels.txt", small).replace("srun --kill-on-bad-exit=0 ", "")
    if name == "slurm-array.sbatch":
        cli("plan", *small.split(), "--out", tmp_path / "scores")
    inside = {**os.environ, "INSIDE": f"env INSIDE=image {sys.executable} -m"}
    subprocess.run(["bash", "-c", text], check=True, capture_output=True, env=inside)
    assert rows(tmp_path / "scores").num_rows == 8
