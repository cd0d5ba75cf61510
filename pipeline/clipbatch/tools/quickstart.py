"""The commands `init` and `demo`: writes a settings file and a label file to start from, and labels sample images.

The files belong to the user afterwards; nothing is ever overwritten.
"""

from __future__ import annotations

import importlib.resources
import json
import os
from pathlib import Path

from clipbatch.config import LabelSettings, SourceSettings, from_flat, labels, models
from clipbatch.errors import InputError
from clipbatch.inputs import listing
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import report_text, run
from clipbatch.storage.atomic import publish, writing_failed
from clipbatch.storage.uris import is_url

CONFIG, LABELS = "clipbatch.toml", "labels.txt"
EXAMPLE_LABELS = "person,animal,vehicle,building,food,document,landscape"
_CONFIG = """\
# Settings of clipbatch: clipbatch run --config {config} --out scores/
# Settings have the names of the options of `clipbatch run`, with _ or - between words; options override them.

inputs = [{images}]       # folders, images, manifests, archives, urls, patterns
labels = {labels}         # a text or TOML file, or a shipped set
# template = ["a photo of a {{}}."]

model = {model}           # `clipbatch models` lists all models and their cost
{pretrained}

# embeddings = true       # also write image embeddings, for clipbatch rescore
# top_k = 5               # the best labels instead of all scores
# reference = true        # slow and exact: open_clip's own transform and fp32
max_bad = "5%"            # stop when more images are bad
"""
_FOLDERS = ("photos", "images", "pictures", "img", "data")
_LABELS = "# One label on each line. Blank lines and lines that start with # are skipped.\n"


def likely_images() -> str:
    """A folder that probably holds the images: one with a usual name, or else the working folder."""
    return next((f"{name}/" for name in _FOLDERS if os.path.isdir(name)), ".")


def check_images(text: str) -> str:
    """`text` in the form for a settings file that is used from any folder. Raises: InputError if a run refuses it."""
    listing.listers(SourceSettings(inputs=(text,)))
    return text if is_url(text) else os.path.abspath(text)


def check_labels(text: str) -> str:
    """`text`. Raises: InputError if it is neither a list of labels, nor a shipped set, nor a file with labels."""
    labels.load(LabelSettings(labels=text))
    return text


def check_free(folder: Path) -> None:
    """Raises: InputError if `folder` is not a folder, or holds one of the files already."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name a folder, which may be new")
    for name in (CONFIG, LABELS):
        if (folder / name).exists():
            raise InputError(f"{folder / name} exists already: change it, delete it, or choose another folder")


def write(folder: Path, *, images: str, label_spec: str, model: str, pretrained: str | None) -> list[Path]:
    """Write the settings file into `folder` and, if labels are given as a list, the label file. Returns their paths.

    Raises: InputError as the checks do, and if `folder` cannot be written.
    """
    check_free(folder)
    images, model = check_images(images), models.canonical(model)
    models.check_weights(pretrained)
    label_set = labels.load(LabelSettings(labels=check_labels(label_spec)))
    label_files, config = list[Path](), (folder / CONFIG).absolute()
    spec = label_spec
    if os.path.isfile(label_spec):
        spec = os.path.abspath(label_spec)
    elif label_spec not in labels.shipped():
        spec = str((folder / LABELS).absolute())
        _write(Path(spec), _LABELS + "".join(f"{name}\n" for name in label_set.names))
        label_files.append(Path(spec))
    weights = pretrained or models.default_weights(model)
    text = _CONFIG.format(
        config=config.name,
        images=_toml(images),
        labels=_toml(spec),
        model=_toml(model),
        pretrained=f"pretrained = {_toml(weights)}" if weights else '# pretrained = ""',
    )
    _write(config, text)
    return [config, *label_files]


def _write(path: Path, text: str) -> None:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object[error.start - 20 : error.end + 20]!r} is not valid text: rename it") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(path.parent, error) from error
    with publish(path) as file:
        file.write(content)


def _toml(text: str) -> str:
    """`text` as a basic string of TOML 1.0."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def label(out: str | os.PathLike[str], *, quiet: bool = False) -> str:
    """Label the sample images with the embedded model. Returns the results and the report as text."""
    images = importlib.resources.files("clipbatch") / "data" / "demo" / "images"
    settings = from_flat({"inputs": [str(images)], "labels": "cifar10", "model": models.DEMO})
    try:
        report = run.run(settings, out, quiet=quiet)
    except InputError as error:
        raise InputError(f"{error} (the demo writes to {out}: choose another folder with --out)") from error
    return _table(RunDir(out)) + "\n\n" + report_text.text(os.fspath(out), report)


def _table(run_dir: RunDir) -> str:
    """All rows of a small run with image, label, score and status."""
    import pyarrow.parquet as pq

    rows = pq.read_table(run_dir.parts, columns=["uri", "label", "score", "status", "error"]).to_pylist()
    lines = [f"{'image':28} {'label':12} {'score':>5}  status"]
    for row in rows:
        label, score = (row["label"], f"{row['score']:.2f}") if row["status"] == "ok" else ("-", "-")
        outcome = row["status"] if row["status"] == "ok" else f"{row['status']}: {row['error']}"
        lines.append(f"{Path(row['uri']).name:28} {label:12} {score:>5}  {outcome}"[:118])
    return "\n".join(lines)
