"""A model repository for NVIDIA Triton's Python backend, whose answers are those of a run with the same settings.

    OUT/NAME/config.pbtxt           inputs, outputs, batching, devices
    OUT/NAME/labels.txt             names of the scores, for each label group
    OUT/NAME/README.md, client.py   how to serve it, and how to ask
    OUT/NAME/1/model.py             what Triton runs: it imports clipbatch
    OUT/NAME/1/clipbatch.json       settings, labels, digests
    OUT/NAME/1/text.npy             the labels' features

The folder appears whole. Weights stay where they are: the server needs them, and checks their digest when it starts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from clipbatch import __version__
from clipbatch.config import Settings, auto
from clipbatch.config import labels as label_sets
from clipbatch.config.labels import LabelSet
from clipbatch.errors import InputError
from clipbatch.rundir.schema import group_columns, layout_of
from clipbatch.runs import resolving
from clipbatch.storage.atomic import as_json, sync_folder
from clipbatch.tools.export import triton_files
from clipbatch.tools.export.request import ask, check_free, staged
from clipbatch.tools.export.triton_files import Output

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def export(settings: Settings, out: Path, *, name: str, instances: int) -> Path:
    """Write the model `name` into the model repository `out`, which is made; returns the model's folder.

    settings: model and labels, how images are read and decoded, score, embeddings. instances: processes for each
    device. Raises: InputError where a setting is refused, the folder is there already, or the model cannot be had.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name!r} is no name for a model: use letters, digits, _, - and .")
    if instances < 1:
        raise InputError(f"--instances {instances} is too few: use 1 or more")
    target = out / name
    check_free(target)
    if layout_of(settings.output) != "list" or settings.output.scores_dtype != "float32":
        raise InputError(
            "layout, top_k and scores_dtype are for files, and Triton's answers have all scores in float32: leave them "
            "out of --config"
        )
    settings = resolving.resolve(settings)
    labels = label_sets.load(settings.labels)
    with staged(target) as folder:
        version = folder / "1"
        version.mkdir()
        answer = ask(settings, labels, text=version / "text.npy")
        outputs = _outputs(labels, settings, answer["embedding"])
        record = {
            "clipbatch": __version__,
            "settings": settings.flat(),
            "labels": labels.identity(),
            "weights_sha256": answer["facts"]["weights_sha256"],
            "text_sha256": answer["text_sha256"],
            "outputs": {output.name: output.kind for output in outputs},
        }
        assert settings.model.batch_size
        texts = {
            "config.pbtxt": triton_files.config(
                name,
                outputs,
                device=auto.device_of(settings),
                batch_size=settings.model.batch_size,
                instances=instances,
            ),
            "README.md": triton_files.readme(name, settings, labels, outputs, score=answer["score"]),
            "client.py": triton_files.client(name),
            "1/model.py": triton_files.MODEL,
        }
        for group in labels.groups:
            texts[_label_file(group.name)] = "".join(f"{' '.join(label.split())}\n" for label in group.names)
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        (version / "clipbatch.json").write_bytes(as_json(record))
        _sync(folder)
        os.rename(folder, target)
        sync_folder(out)
    return target


def _outputs(labels: LabelSet, settings: Settings, embedding: int) -> list[Output]:
    """The outputs of the model, named as the columns of a run."""
    found = []
    for group, columns in zip(labels.groups, group_columns(labels, settings.output), strict=True):
        (scores,) = columns.scores
        found += [
            Output(name=columns.label, kind="TYPE_STRING", length=1),
            Output(name=columns.score, kind="TYPE_FP32", length=1),
            Output(name=scores, kind="TYPE_FP32", length=len(group.names), label_file=_label_file(group.name)),
        ]
    found += [Output(name=name, kind="TYPE_STRING", length=1) for name in ("status", "error")]
    if settings.output.embeddings:
        found.append(Output(name="embedding", kind="TYPE_FP32", length=embedding))
    return found


def _label_file(group: str) -> str:
    return f"{group}_labels.txt" if group else "labels.txt"


def _sync(folder: Path) -> None:
    """Make all files of `folder` durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
