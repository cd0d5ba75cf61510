"""What is asked of the process that loads the model, and where finished files go."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict, cast

from clipbatch.config import Settings, SettingValues
from clipbatch.config.labels import LabelSet
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir.records import ModelFacts
from clipbatch.storage.atomic import remove_leftovers, sync_folder, temp_name, writing_failed
from clipbatch.workers import child


class Request(TypedDict):
    """What is to be exported, and into which files."""

    settings: SettingValues
    # A label set's identity.
    labels: JsonObject | None
    # File for the features of `labels`.
    text: str | None
    # File for the image tower.
    onnx: str | None
    # Of the image tower in that file.
    precision: Literal["fp32", "fp16"]
    # Of the image tower in that file; None: dynamic.
    batch_size: int | None


class Answer(TypedDict, total=False):
    """What was exported."""

    facts: ModelFacts
    # How scores are made.
    score: str
    # Its length.
    embedding: int
    text_sha256: str
    opset: int
    # Between the file's embeddings and torch's, of a few images.
    worst_cosine: float


def ask(
    settings: Settings,
    labels: LabelSet | None,
    *,
    text: Path | None,
    onnx: Path | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    batch_size: int | None = None,
) -> Answer:
    """Load the model of `settings`, which are resolved, in a process of its own, and write the files that are named.

    Raises: InputError where the model cannot be had or exported.
    """
    request = Request(
        settings=settings.flat(),
        labels=labels.identity() if labels else None,
        text=str(text) if text else None,
        onnx=str(onnx) if onnx else None,
        precision=precision,
        batch_size=batch_size,
    )
    with tempfile.TemporaryDirectory(prefix="clipbatch-export-") as scratch:
        file = Path(scratch, "request.json")
        file.write_text(json.dumps(request))  # thousands of labels are too long for an argument
        (answer,) = child.messages_of("clipbatch.tools.export.export_main", str(file))
    return cast(Answer, answer)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, for files on their way; removed at the end with what is still in it.

    Raises: InputError where it cannot be made, or what is written into it cannot be written.
    """
    folder = temp_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        folder.mkdir()
        yield folder
    except OSError as error:
        raise writing_failed(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_free(*targets: Path) -> None:
    """Raises: InputError where one of `targets` is there already."""
    for target in targets:
        if os.path.lexists(target):
            raise InputError(f"{target} is there already: remove it, or choose another name")


def move_all(folder: Path, target: Path, last: str) -> None:
    """Rename all files of `folder` into the folder `target`, the one named `last` at the end, and make that durable."""
    names = sorted(os.listdir(folder), key=lambda name: (name == last, name))
    for name in names:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
        os.rename(folder / name, target / name)
    sync_folder(target)
