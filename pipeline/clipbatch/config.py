"""All settings of a run: frozen dataclasses, one a stage, checked when they are made.

Field names are the command line's flags and the keys of a `--config` file (dashes or underscores); no name occurs
twice. Every refusal is a ValueError of the kind `InputError` that names the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from clipbatch.checks import Checked, SettingError, at_least
from clipbatch.errors import InputError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Precision = Literal["auto", "fp16", "bf16", "fp32"]
Decoder = Literal["auto", "dali", "torchvision", "pil"]
Orientation = Literal["upright", "stored"]
Score = Literal["auto", "softmax", "sigmoid", "cosine"]
Layout = Literal["list", "wide", "top-k"]
ScoresDtype = Literal["float32", "float16"]
Compression = Literal["zstd", "lz4", "snappy", "gzip", "none"]

RUNTIME = ("read_threads", "read_timeout", "read_retries", "decode_timeout", "worker_timeout")
"""Settings that each invocation may set anew and hands to its workers."""

ANEW = (*RUNTIME, "device", "gpus", "workers", "rank", "world_size", "shards", "max_bad")
"""All settings that each invocation may set anew, also where it goes on with a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings(Checked):
    """What is to be labelled."""

    inputs: tuple[str, ...] = ()
    """Folders, image files, manifests, archives, tables of images, urls; `-` for a text manifest on standard input."""
    root: str | None = None
    """Folder that a manifest's paths are relative to; default: the manifest's own."""
    all_files: bool = False
    """Take every file of a folder or archive, whatever its suffix."""
    uri_column: str | None = None
    """Column of a manifest that names the images; default: the one whose name says so."""
    image_column: str | None = None
    """Column of a table that holds the images' bytes; default: the one whose type and name say so."""
    columns: tuple[str, ...] | None = None
    """Columns of a manifest to carry through to the output; default: all. Of an archive: suffixes of sidecar files."""
    limit: int | None = None
    """Stop the listing after this many rows."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("limit", self.limit, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings(Checked):
    """What the images are compared with."""

    labels: str = ""
    """A text or TOML file, a shipped set's name, or a comma-separated list."""
    template: tuple[str, ...] = ()
    """Prompt templates with `{}` for the label, or the name of one of open_clip's sets: simple, openai."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings(Checked):
    """Which encoder, and how it runs."""

    model: str = "ViT-B-32"
    """One of open_clip's names, `clipbatch-demo`, `hf-hub:ORG/NAME`, or a model config FILE.json."""
    pretrained: str | None = None
    """open_clip's tag for the weights, or a file; default: laion2b_s34b_b79k for ViT-B-32."""
    precision: Precision = "auto"
    """auto: fp16 on a GPU, bf16 on a CPU that multiplies it in hardware, else fp32."""
    device: str = "auto"
    """auto, cpu, cuda, or cuda:N for one GPU."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise SettingError(f"device {self.device!r} is not known: use auto, cpu, or cuda:N")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings(Checked):
    """How files are read."""

    read_threads: int | None = None
    """Files read at the same time; default: 16, and 64 in stores and on the web."""
    read_timeout: float = 60.0
    """Seconds after which a file that does not answer gets status timeout."""
    read_retries: int = 3
    """How often a read that failed with an I/O error is tried again."""
    max_bytes: int = 256 * 2**20
    """Larger files get status too_large."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("read_threads", self.read_threads, 1)
        at_least("read_timeout", self.read_timeout, 0.01)
        at_least("read_retries", self.read_retries, 0)
        at_least("max_bytes", self.max_bytes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings(Checked):
    """How bytes become pixels."""

    decoder: Decoder = "auto"
    """auto: dali on a GPU, torchvision on a CPU. pil always has the last word on what the others refuse."""
    orientation: Orientation = "upright"
    """upright follows the camera's EXIF orientation; stored ignores it, as open_clip does."""
    max_pixels: int = 178_956_970
    """Larger images get status too_large; the default is where Pillow refuses a decompression bomb."""

    decode_timeout: float = 60.0
    """Seconds that a suspect image, tried alone after a worker has ended, may take before it gets status timeout."""
    worker_timeout: float = 600.0
    """Seconds without a finished batch after which a worker counts as hung and is started again."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("max_pixels", self.max_pixels, 1)
        at_least("decode_timeout", self.decode_timeout, 0.1)
        at_least("worker_timeout", self.worker_timeout, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings(Checked):
    """What is written."""

    score: Score = "auto"
    """auto: as the model was trained, sigmoid for the SigLIP family and softmax for the others."""
    layout: Layout = "list"
    """list: a column `scores` with a list in label order; wide: a column for each label; top-k: the best labels."""
    top_k: int | None = None
    """How many labels the layout top-k keeps, 5 by default; giving it chooses that layout."""
    scores_dtype: ScoresDtype = "float32"
    """Of the scores' column or columns; the best label's score stays float32."""
    compression: Compression = "zstd"
    """Of the part files."""
    embeddings: bool = False
    """Also write each image's embedding as float16."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("top_k", self.top_k, 1)
        if self.top_k and self.layout == "wide":
            raise SettingError("top_k goes with layout top-k, not with wide: leave one of them out")

    @property
    def best(self) -> int | None:
        """How many labels are written for an image; None: the scores of all."""
        return self.top_k or (5 if self.layout == "top-k" else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings(Checked):
    """Where this invocation works and which shards it does. No part of a run's identity."""

    gpus: str | None = None
    """all, or numbers as in 0,1; default: all that are visible, if there is one."""
    workers: int | None = None
    """Worker processes on a CPU, which share its cores; default: 1."""
    rank: int | None = None
    """Which of `world_size` processes this is, from 0; default: as Slurm, torchrun or Kubernetes says."""
    world_size: int | None = None
    """How many processes share the run."""
    shards: str | None = None
    """Do only these: numbers as in 3,5-9, or a file with such numbers on its lines."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.gpus is not None and not re.fullmatch(r"all|[0-9]+(,[0-9]+)*", self.gpus):
            raise SettingError(f"gpus {self.gpus!r} is not known: use all, or numbers as in 0,1")
        at_least("workers", self.workers, 1)
        at_least("rank", self.rank, 0)
        at_least("world_size", self.world_size, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Checked):
    """All settings of a run. None stands for 'chosen by the planner' until `plan` has frozen them."""

    source: SourceSettings = field(default_factory=SourceSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    batch_size: int | None = None
    """Images in a batch; part of the run's identity, since it may move scores in the last digit."""
    shard_size: int | None = None
    """Rows in a part file, a multiple of batch_size; default: about a minute of work."""
    max_bad: str | None = None
    """Stop as broken when more images than this are bad: a count (`500`) or a share of all rows (`1%`)."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("batch_size", self.batch_size, 1)
        at_least("shard_size", self.shard_size, 1)
        self.bad_allowed(0)
        if self.batch_size and self.shard_size and self.shard_size % self.batch_size:
            near = math.ceil(self.shard_size / self.batch_size) * self.batch_size
            raise SettingError(
                f"shard_size {self.shard_size} is not a multiple of batch_size {self.batch_size}: use {near}"
            )

    def bad_allowed(self, rows: int) -> int | None:
        """How many of `rows` images may be bad; None: any number."""
        if self.max_bad is None:
            return None
        number, percent = self.max_bad.removesuffix("%"), self.max_bad.endswith("%")
        try:
            value = Fraction(number) if percent else Fraction(int(number))
        except (ValueError, ZeroDivisionError):
            value = Fraction(-1)
        if value < 0 or (percent and value > 100):
            raise SettingError(f"max_bad {self.max_bad!r} is neither a count nor a percentage: use 500 or 1%")
        return math.floor(rows * value / 100) if percent else int(value)

    def flat(self) -> dict[str, Any]:
        """All fields by name, stages flattened."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            stage = getattr(self, f.name)
            own = dataclasses.is_dataclass(stage)
            values |= {g.name: getattr(stage, g.name) for g in dataclasses.fields(stage)} if own else {f.name: stage}
        return values

    def runtime(self) -> dict[str, Any]:
        """The settings of `RUNTIME`, by name."""
        return {name: value for name, value in self.flat().items() if name in RUNTIME}

    def replace(self, **changes: Any) -> Settings:
        """A copy with the named fields changed, whichever stage they belong to."""
        return from_flat(self.flat() | changes)


def from_flat(values: Mapping[str, Any]) -> Settings:
    """Settings from field names and values; lists become tuples. Unknown names are refused with the nearest known."""
    hints: dict[str, Any] = typing.get_type_hints(Settings)
    stages: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    known = list(Settings().flat())
    for name in values:
        if name not in known:
            raise SettingError(f"there is no setting {name!r}.{nearest(name, known)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    made: dict[str, Any] = {
        stage: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
        for stage, kind in stages.items()
    }
    own: dict[str, Any] = {name: values[name] for name in hints if name in values and name not in stages}
    return Settings(**made, **own)


def parse_toml(text: str) -> dict[str, Any]:
    """Raises: ValueError with the line where `text` is not TOML."""
    found: dict[str, Any] = tomllib.loads(text)
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Settings from a `--config` file, by field name.

    Raises: InputError where the file cannot be read, is not TOML, or holds a table.
    """
    try:
        found = parse_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the settings file {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file of settings: {error}") from error
    values = {name.replace("-", "_"): value for name, value in found.items()}
    for name, value in values.items():
        if isinstance(value, dict):
            raise InputError(f"{path}: [{name}] is a table; settings stand at the top level, one a line")
        if name in ("template", "inputs", "columns") and isinstance(value, str):
            values[name] = [value]
        if name == "max_bad" and isinstance(value, int):
            values[name] = str(value)
    try:
        from_flat(values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    return values
