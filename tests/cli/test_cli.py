"""The command line: its options, its exit codes, and its errors for wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder

PLANNING = (
    "--all-files --background --batch-size --caption-column --columns --compile --compression --config "
    "--cpu-share --cpus-per-worker --decode-threads --decode-timeout --decoder --device --embeddings --engine "
    "--gpus --head --head-anyway --hw-decoder-load --image-column --jpeg-scale --json --labels --layout --limit "
    "--max-bad --max-bytes --max-pixels --max-refused --model --no-header --orientation --out --overwrite "
    "--precision --pretrained --profile --rank --read-retries --read-threads --read-timeout --reference --root "
    "--sample --score --scores-dtype --seed --shard-size --shards --template --top-k --uri-column "
    "--worker-timeout --workers --workers-per-gpu --world-size"
)
SURFACE = {
    "run": PLANNING
    + " --confirm-deleted --force --hash-contents --incremental --log-format --mark-deleted --metrics --metrics-port"
    " --one-line --quiet --repair --retry-bad",
    "plan": PLANNING + " --quiet",
    "estimate": PLANNING.replace(" --out --overwrite", "") + " --plan --seconds --usd-per-gpu-hour",
    "submit slurm": PLANNING
    + " --array --check-sbatch-option --cpus-per-task --dry-run --gres --launcher --mem --partition --requeues "
    "--sbatch-option --setup --slurm-dir --time",
    "serve": "--allow-host --background --batch-size --body-time --caption-column --columns --compression --config "
    "--decoder --device --embeddings --grace-time --head --head-anyway --http --idle-time --image-column --labels "
    "--layout --max-body-mib --max-bytes --max-connections --max-header-kib --max-images --max-json-depth "
    "--max-megapixels --max-pixels --max-refused --max-requests --model --no-header --no-token --only-own-files "
    "--orientation --precision --pretrained --quiet --read-retries --read-threads --read-timeout --root --score "
    "--scores-dtype --shard-size --template --token-file --top-k --uri-column",
    "rescore": "--caption-column --compression --device --embeddings --head --head-anyway --json --labels --layout "
    "--out --overwrite --quiet --score --scores-dtype --template --top-k",
    "compact": "--flat --json --out --rows-per-file",
    "status": "--json --watch",
    "verify": "--json --restore",
    "report": "--examples --out --zoom",
    "evaluate": "--group --json --labels --mapping --page --precision --thresholds --truth",
    "import-head": "--activation --json --model --out --outputs --pretrained --result --run --unit-length",
    "fit-head": "--c --held-out --json --out --seed --truth",
    "review": "--doubtful --group --out --per-label --random --seed --url-prefix",
    "doctor": "--json --model --pretrained",
    "tune": "--batch-size --budget --decoder --device --image-column --json --limit --model --no-header --orientation "
    "--out --precision --pretrained --root --uri-column",
    "init": "--images --labels --model --pretrained --yes",
    "parity": "--all-files --background --batch-size --config --decoder --device --image-column --json --labels "
    "--limit --max-pixels --model --no-header --orientation --out --precision --pretrained --root --template "
    "--uri-column",
    "fetch": "--json --pretrained",
    "export onnx": "--batch-size --json --labels --model --out --precision --pretrained --score --template",
    "export triton": "--background --batch-size --config --decoder --device --embeddings --instances --labels "
    "--max-bytes --max-pixels --model --name --orientation --out --precision --pretrained --score --template",
    "labels": "--json --model --pretrained --template",
    "models": "--json",
    "demo": "--out --quiet",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 40, seed=9, bad_fraction=0.25)
    return folder


def test_the_surface_is_frozen(warm: Cli) -> None:
    from typer.main import get_command

    from clipbatch.cli import app

    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    for group in ("submit", "export"):
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    shown = {
        name: sorted({option for param in command.params for option in param.opts if option.startswith("--")})
        for name, command in commands.items()
    }
    assert shown == {name: sorted(options.split()) for name, options in SURFACE.items()}
    for name in SURFACE:
        assert f"Example: clipbatch {name}" in warm(*name.split(), "--help").stdout


def test_help_plan_status_and_verify_start_without_torch_or_dali(cli: Cli, folder: Path, tmp_path: Path) -> None:
    cli("run", folder, *DEMO, "--out", tmp_path / "out")
    heavy = "{'torch', 'nvidia', 'open_clip', 'PIL'}"
    check = f"""
import sys
from clipbatch.cli import main
try:
    main()
finally:
    print(sorted({heavy} & {{name.split('.')[0] for name in sys.modules}}))
"""
    for arguments, loaded in (
        (["--help"], "[]"),
        (["status", tmp_path / "out"], "[]"),
        (["verify", tmp_path / "out"], "[]"),
        (["plan", folder, *DEMO, "--out", tmp_path / "new"], "[]"),
        (["report", tmp_path / "out"], "['PIL']"),  # by matplotlib, to which no image is given
        (["submit", "slurm", "--out", tmp_path / "new", "--array", "2", "--dry-run"], "[]"),
    ):
        made = subprocess.run(
            [sys.executable, "-c", check, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        assert made.stdout.splitlines()[-1] == loaded, arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labels", "nosuch.txt"], "nosuch.txt"),
        (["--labels", "cifar"], "Did you mean cifar10"),
        (["--labels", "cat,dog,cat"], "'cat' appears twice"),
        (["--labels", "{picture}"], "is not a text file"),
        (["--labels", "{empty}"], "has no labels"),
        (["--labels", "cat"], "comma-separated list"),
        (["--labels", "a,b", "--template", "no braces"], "no braces"),
        (["--labels", "a,b", "--model", "ViT-B32"], "Did you mean ViT-B-32"),
        (["--labels", "a,b", "--model", "local-dir:gone"], "there is no folder "),
        (["--labels", "a,b", "--pretrained", "gone.safetensors"], "gone.safetensors: there is no such file"),
        (["--labels", "a,b", "--precision", "fp61"], "fp16"),
        (["--labels", "a,b", "--decoder", "opencv"], "'opencv'"),
        (["--labels", "a,b", "--shard-size", "100", "--batch-size", "32"], "use 128"),
        (["--labels", "a,b", "--max-bad", "many"], "'many'"),
        (["--labels", "a,b", "--device", "gpu"], "'gpu'"),
        (["--labels", ",".join(f"l{n}" for n in range(2001)), "--layout", "wide"], "use --layout list or --top-k K"),
        ([], "no labels"),
    ],
)
def test_wrong_settings_are_refused_in_one_line_before_anything_is_written(
    warm: Cli, folder: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    (tmp_path / "empty.txt").touch()
    places = {"picture": tmp_path / "picture.png", "empty": tmp_path / "empty.txt"}
    error = warm("run", folder, *(a.format(**places) for a in arguments), "--out", tmp_path / "out", code=3).stderr
    assert said in error
    assert error.startswith("clipbatch: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["nothing", "no images", "missing", "wrong kind"])
def test_wrong_inputs_are_refused(warm: Cli, tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").touch()
    (tmp_path / "table.xyz").touch()
    given = {"nothing": [], "no images": ["empty"], "missing": ["nowhere"], "wrong kind": ["table.xyz"]}[what]
    error = warm("run", *given, *DEMO, "--out", "out", code=3, cwd=tmp_path).stderr
    assert {"nothing": "no INPUT", "no images": "--all-files", "missing": "'nowhere'", "wrong kind": "'table.xyz'"}[
        what
    ] in error
    assert not (tmp_path / "out" / "run.json").exists()
    assert not (tmp_path / "out" / "manifest").exists()


def test_the_output_of_another_run_is_refused_with_the_field_named(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    warm("run", folder, *DEMO, "--out", out)
    before = rows(out)
    error = warm("run", folder, "--labels", "cat,dog", "--model", "clipbatch-demo", "--out", out, code=3).stderr
    assert "labels is" in error
    assert "--overwrite" in error
    assert "top_k is" in warm("run", folder, *DEMO, "--top-k", 2, "--out", out, code=3).stderr
    assert f"{json.dumps(['cat', 'dog'])}" in error  # both values, whole
    assert all(f'"{name}"' in error for name in ("airplane", "automobile", "bird", "frog", "horse", "truck"))
    assert "..." not in error
    assert rows(out).equals(before)
    warm("run", folder, "--labels", "cat,dog", "--model", "clipbatch-demo", "--out", out, "--overwrite")
    assert set(rows(out)["label"].to_pylist()) <= {"cat", "dog", None}


def test_plan_prints_what_it_made_in_the_words_of_users_or_nothing(warm: Cli, folder: Path, tmp_path: Path) -> None:
    command = ("plan", folder, *DEMO, "--shard-size", 32, "--out", tmp_path / "out")
    assert warm(*command, "-q").stdout == ""
    facts = {line[:14].strip(): line[15:] for line in warm(*command).stdout.splitlines()}
    assert (facts["rows"], facts["parts"], facts["rows a part"]) == ("40", "2", "32")
    assert not [name for name in facts if "shard" in name]
    assert json.loads(warm(*command, "--json", "--quiet").stdout)["shards"] == 2


def test_an_output_folder_with_other_files_or_without_room_is_refused(warm: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    assert "holds other files" in warm("run", folder, *DEMO, "--out", tmp_path / "used", code=3).stderr
    assert os.listdir(tmp_path / "used") == ["thesis.tex"]
    assert "cannot write" in warm("run", folder, *DEMO, "--out", tmp_path / "used" / "thesis.tex", code=3).stderr
    assert "cannot write" in warm("run", folder, *DEMO, "--out", "/proc/nowhere", code=3).stderr


def test_a_folder_of_the_user_s_stays_where_the_input_is_refused(warm: Cli, tmp_path: Path) -> None:
    for name in ("empty", "mine"):
        (tmp_path / name).mkdir()
    for out in ("mine", "new"):
        assert "--all-files" in warm("plan", "empty", *DEMO, "--out", out, code=3, cwd=tmp_path).stderr
    assert sorted(os.listdir(tmp_path)) == ["empty", "mine"]


def test_weights_that_are_neither_cached_nor_reachable_are_one_clear_error(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    made = cli(
        *("run", folder, "--labels", "a,b", "--quiet", "--out", tmp_path / "out"),
        code=3,
        env={"HF_HOME": str(tmp_path / "hf")},
    )
    assert "laion2b_s34b_b79k" in made.stderr
    assert "--pretrained FILE" in made.stderr
    assert made.stderr.count("\n") == 1
    cli("run", folder, *DEMO, "--out", tmp_path / "out")  # nothing was scored, so other settings may take the folder


def test_flags_win_over_the_settings_file(warm: Cli, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('labels = "cat,dog"\nmodel = "clipbatch-demo"\ntop-k = 2\nlimit = 5\n')
    warm("run", folder, "--config", config, "--limit", 7, "--out", tmp_path / "out")
    table = rows(tmp_path / "out")
    assert table.num_rows == 7
    assert "top" in table.column_names


def test_too_many_bad_images_end_with_4_and_fewer_do_not(warm: Cli, folder: Path, tmp_path: Path) -> None:
    error = warm("run", folder, *DEMO, "--max-bad", "5%", "--out", tmp_path / "few", code=4).stderr
    assert "--max-bad" in error
    warm("run", folder, *DEMO, "--max-bad", "40", "--out", tmp_path / "many")


def test_a_manifest_on_standard_input_and_quiet_and_json(cli: Cli, folder: Path, tmp_path: Path) -> None:
    names = sorted(str(path) for path in folder.rglob("*.jpg"))[:6]
    made = cli("run", "-", *DEMO, "--out", tmp_path / "out", "--quiet", stdin="\n".join(names))
    assert (made.stdout, made.stderr) == ("", "")
    assert rows(tmp_path / "out")["uri"].to_pylist() == names
    assert json.loads(cli("status", tmp_path / "out", "--json").stdout)["complete"] is True
    again = json.loads(cli("run", "--out", tmp_path / "out", "--json").stdout)
    assert (again["rows"], again["this_run"]["rows"]) == (6, 0)


def test_the_demo_shows_labels_and_bad_files(cli: Cli, tmp_path: Path) -> None:
    shown = cli("demo", "--out", tmp_path / "demo").stdout
    table = rows(tmp_path / "demo")
    right = [
        Path(row["uri"]).name.split("-")[0].replace("car", "automobile") == row["label"] for row in table.to_pylist()
    ]
    assert sum(right) >= 30
    assert "broken-download.jpg" in shown
    assert "unsupported" in shown
    assert "truncated" in shown


def test_labels_and_models_show_what_the_model_will_see(warm: Cli, tmp_path: Path) -> None:
    assert "    a photo of a cat." in warm("labels", "cat,dog").stdout.splitlines()
    (tmp_path / "g.toml").write_text(
        "[groups.a]\nlabels = ['x', 'y']\nthreshold = 0.5\n[groups.b]\nlabels = ['x', 'z']"
    )
    shown = warm("labels", tmp_path / "g.toml").stdout
    assert shown.startswith("# group a, no label below 0.5\nx\n    a photo of a x.\n")
    assert "\n# group b\nx\n" in shown
    assert json.loads(warm("labels", tmp_path / "g.toml", "--json").stdout)["b"]["z"] == ["a photo of a z."]
    listed = json.loads(warm("models", "ViT-B-", "--json").stdout)
    cost = {entry["name"]: entry["image_gflop"] for entry in listed}
    assert cost["ViT-B-16"] > 3.5 * cost["ViT-B-32"]
