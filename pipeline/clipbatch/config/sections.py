"""The settings of each stage, frozen and checked when they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from clipbatch.config.validation import Checked, SettingError, at_least

Precision = Literal["auto", "fp16", "bf16", "fp32", "fp8"]
Compile = Literal["auto", "on", "off"]
Decoder = Literal["auto", "dali", "torchvision", "pil", "open_clip"]
Orientation = Literal["upright", "stored"]
JpegScale = Literal["full", "reduced"]
Score = Literal["auto", "softmax", "sigmoid", "cosine"]
Layout = Literal["list", "wide", "top-k"]
ScoresDtype = Literal["float32", "float16"]
EngineName = Literal["local", "ray"]
Compression = Literal["zstd", "lz4", "snappy", "gzip", "none"]


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
    no_header: bool | None = None
    """Whether the first line of CSV and TSV files is a row; default: it is one where it looks like those below."""
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
    """One of open_clip's names, `clipbatch-demo`, `hf-hub:ORG/NAME`, `local-dir:FOLDER`, or a config FILE.json."""
    pretrained: str | None = None
    """open_clip's tag for the weights, or a file; default: laion2b_s34b_b79k for ViT-B-32."""
    precision: Precision = "auto"
    """auto: fp16 on a GPU, bf16 on a CPU that multiplies it in hardware, else fp32."""
    compile: Compile = "auto"
    """torch.compile for the image encoder; auto: on a GPU, where the run is long enough to gain from it."""
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
    """auto: dali on a GPU, torchvision on a CPU. pil always has the last word on what these refuse. open_clip: its
    own transform, slow."""
    orientation: Orientation = "upright"
    """upright follows the camera's EXIF orientation; stored ignores it, as open_clip does."""
    max_pixels: int = 178_956_970
    """Larger images get status too_large; the default is where Pillow refuses a decompression bomb."""
    jpeg_scale: JpegScale = "full"
    """reduced: JPEGs of four times the model's size and more, on both axes, are decoded at 1/2, 1/4 or 1/8 of theirs,
    which costs less and moves pixels a little."""
    hw_decoder_load: float | None = None
    """Share of a batch's JPEGs for the GPU's JPEG engines, 0 to 1; default: DALI's own. For decoder dali."""
    cpu_share: float = 0.0
    """Share of the images, chosen by row number, that torchvision decodes on the CPU's cores meanwhile. For decoder
    dali."""
    decode_threads: int | None = None
    """Threads that decode; default: one for each core."""
    decode_timeout: float = 60.0
    """Seconds that a suspect image, tried alone after a worker has ended, may take before it gets status timeout."""
    worker_timeout: float = 600.0
    """Seconds without a finished batch after which a worker counts as hung and is started again."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("max_pixels", self.max_pixels, 1)
        at_least("hw_decoder_load", self.hw_decoder_load, 0, 1)
        at_least("cpu_share", self.cpu_share, 0, 1)
        at_least("decode_threads", self.decode_threads, 1)
        at_least("decode_timeout", self.decode_timeout, 0.1)
        at_least("worker_timeout", self.worker_timeout, 1)
        if self.jpeg_scale == "reduced" and self.decoder in ("pil", "open_clip"):
            raise SettingError(
                f"jpeg_scale reduced is for decoders dali and torchvision, and the decoder is {self.decoder}: use auto"
            )
        for name, value in (("hw_decoder_load", self.hw_decoder_load), ("cpu_share", self.cpu_share or None)):
            if value is not None and self.decoder not in ("auto", "dali"):
                raise SettingError(
                    f"{name} {value} is for decoder dali, and the decoder is {self.decoder}: leave it out"
                )


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

    engine: EngineName = "local"
    """local: workers on this machine. ray: workers on a Ray cluster."""
    gpus: str | None = None
    """all, or numbers as in 0,1; default: all that are visible, if there is one."""
    workers: int | None = None
    """Worker processes on a CPU, which share its cores; default: 1. On a Ray cluster, how many to ask it for; default:
    as many as it has room for."""
    cpus_per_worker: int | None = None
    """Cores that each worker asks the Ray cluster for; default: all of a node, or its GPU's share of them."""
    rank: int | None = None
    """Which of `world_size` processes this is, from 0; default: as Slurm, torchrun or Kubernetes says."""
    world_size: int | None = None
    """How many processes share the run."""
    shards: str | None = None
    """Do only these: numbers as in 3,5-9, or a file with such numbers on its lines."""
    profile: str | None = None
    """File for a Chrome trace of each worker's first batches; where there are several, numbered."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.gpus is not None and not re.fullmatch(r"all|[0-9]+(,[0-9]+)*", self.gpus):
            raise SettingError(f"gpus {self.gpus!r} is not known: use all, or numbers as in 0,1")
        at_least("workers", self.workers, 1)
        at_least("cpus_per_worker", self.cpus_per_worker, 1)
        at_least("rank", self.rank, 0)
        at_least("world_size", self.world_size, 1)
