"""The settings of each stage, frozen and checked when they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

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
PIXELS = 2
"""The rules of today by which files become pixels."""
MOVED = (
    "TIFFs with an orientation, other pictures with one in XMP or behind fill bytes, transparent pictures, gray of "
    "more than 8 bits, and animated PNGs"
)
"""The pictures whose pixels are others by these rules than by those before."""
Compression = Literal["zstd", "lz4", "snappy", "gzip", "none"]


Scope = Literal["identity", "output", "frozen", "invocation", "worker", "placement"]
"""What a setting belongs to, and so what may change it.

identity: decides what the parts hold; a run with another value is another run. One that is added later has the default
None, which means "as before" and is not written.
output: the same, but a rescoring may choose it anew.
frozen: kept in `run.json`; its effect is part of the identity in another form.
invocation: each invocation chooses it anew, also when it goes on with a run; a Slurm job hands it on to its tasks.
worker: the same, and the workers get it.
placement: which devices and which part of the run are this process's; never handed on.
"""


def setting(default: Any, panel: str, scope: Scope, help_text: str, *, short: str = "") -> Any:
    """A field of a section: its option's help, the panel that lists it, and what it belongs to. short: as in -m."""
    return field(default=default, metadata={"panel": panel, "scope": scope, "help": help_text, "short": short})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings(Checked):
    """What is to be labelled."""

    inputs: tuple[str, ...] = ()
    """Folders, image files, manifests, archives, tables of images, urls; `-` for a text manifest on standard input."""
    root: str | None = setting(
        None, "Input", "frozen", "Folder or url that a manifest's paths are relative to and may not leave."
    )
    """Folder that a manifest's paths are relative to; default: the manifest's own."""
    all_files: bool = setting(False, "Input", "identity", "Take every file of a folder, whatever its suffix.")
    """Take every file of a folder or archive, whatever its suffix."""
    uri_column: str | None = setting(None, "Input", "identity", "Column of a manifest that names the images.")
    """Column of a manifest that names the images; default: the one whose name says so."""
    no_header: bool | None = setting(
        None, "Input", "identity", "Take the first line of CSV and TSV files as a row, too."
    )
    """Whether the first line of CSV and TSV files is a row; default: it is one where it looks like those below."""
    image_column: str | None = setting(None, "Input", "identity", "Column of a table that holds the images' bytes.")
    """Column of a table that holds the images' bytes; default: the one whose type and name say so."""
    columns: tuple[str, ...] | None = setting(
        None, "Input", "identity", "Carry only this column of the input to the output (repeatable, or a,b,c; none: '')."
    )
    """Columns of a manifest to carry through to the output; default: all. Of an archive: suffixes of sidecar files."""
    limit: int | None = setting(None, "Input", "identity", "Take only the first N rows.")
    sample: int | None = setting(None, "Input", "identity", "Take N rows drawn at random from all of the input.")
    """Take so many rows, drawn uniformly from the whole listing, in the listing's order."""
    seed: int | None = setting(None, "Input", "identity", "Another seed draws another --sample; default: 0.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("limit", self.limit, 1)
        at_least("sample", self.sample, 1)
        at_least("seed", self.seed, 0)
        if self.sample and self.limit:
            raise SettingError(f"sample {self.sample} and limit {self.limit} both say how many rows: leave one out")
        if self.seed is not None and not self.sample:
            raise SettingError(f"seed {self.seed} is for sample: add that, or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings(Checked):
    """What the images are compared with."""

    labels: str = setting("", "Labels", "frozen", "A text or TOML FILE, a shipped set's name, or a,b,c.", short="-l")
    template: tuple[str, ...] = setting(
        (), "Labels", "frozen", "Prompt template with {} for the label, or a set: simple, openai; repeatable."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings(Checked):
    """Which encoder, and how it runs."""

    model: str = setting(
        "ViT-B-32",
        "Model",
        "identity",
        "open_clip's name, clipbatch-demo, hf-hub:ORG/NAME, local-dir:FOLDER, or FILE.json.",
        short="-m",
    )
    """One of open_clip's names, `clipbatch-demo`, `hf-hub:ORG/NAME`, `local-dir:FOLDER`, or a config FILE.json."""
    pretrained: str | None = setting(
        None, "Model", "identity", "Weights: one of open_clip's tags, a FILE, or hf-hub:ORG/NAME."
    )
    """open_clip's tag for the weights, or a file; default: laion2b_s34b_b79k for ViT-B-32."""
    precision: Precision = setting("auto", "Model", "identity", "auto, fp16, bf16, fp32, or fp8 on GPUs that have it.")
    """auto: fp16 on a GPU, bf16 on a CPU that multiplies it in hardware, else fp32."""
    compile: Compile = setting("auto", "Model", "identity", "torch.compile: auto (on a GPU, for long runs), on or off.")
    """torch.compile for the image encoder; auto: on a GPU, where the run is long enough to gain from it."""
    device: str = setting("auto", "Model", "invocation", "auto, cpu, cuda, or cuda:N for one GPU.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise SettingError(f"device {self.device!r} is not known: use auto, cpu, or cuda:N")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings(Checked):
    """How files are read."""

    read_threads: int | None = setting(None, "Images", "worker", "Files read at once (default 16; remote 64).")
    """Files read at the same time; default: 16, and 64 in stores and on the web."""
    read_timeout: float = setting(60.0, "Images", "worker", "Seconds until a file that hangs is given up.")
    """Seconds after which a file that does not answer gets status timeout."""
    read_retries: int = setting(3, "Images", "worker", "Further tries after an I/O error.")
    max_bytes: int = setting(256 * 2**20, "Images", "identity", "Larger files get status too_large.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("read_threads", self.read_threads, 1)
        at_least("read_timeout", self.read_timeout, 0.01)
        at_least("read_retries", self.read_retries, 0)
        at_least("max_bytes", self.max_bytes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings(Checked):
    """How bytes become pixels."""

    decoder: Decoder = setting("auto", "Images", "identity", "auto, dali, torchvision, pil or open_clip.")
    """auto: dali on a GPU, torchvision on a CPU. pil always has the last word on what these refuse. open_clip: its
    own transform, slow."""
    orientation: Orientation = setting(
        "upright", "Images", "identity", "upright: follow EXIF; stored: ignore it, as open_clip does."
    )
    """upright follows the camera's EXIF orientation; stored ignores it, as open_clip does."""
    max_pixels: int = setting(178956970, "Images", "identity", "Larger images get status too_large.")
    """Larger images get status too_large; the default is where Pillow refuses a decompression bomb."""
    jpeg_scale: JpegScale = setting(
        "full", "Images", "identity", "full; or reduced: decode big JPEGs at 1/2, 1/4 or 1/8, which is faster."
    )
    """reduced: JPEGs of four times the model's size and more, on both axes, are decoded at 1/2, 1/4 or 1/8 of theirs,
    which costs less and moves pixels a little."""
    hw_decoder_load: float | None = setting(
        None, "Images", "identity", "Share of JPEGs for the GPU's JPEG engines, 0 to 1; default: DALI's."
    )
    """Share of a batch's JPEGs for the GPU's JPEG engines, 0 to 1; default: DALI's own. For decoder dali."""
    cpu_share: float = setting(
        0.0, "Images", "identity", "Share of images that CPU cores decode while DALI does the others."
    )
    """Share of the images, chosen by row number, that torchvision decodes on the CPU's cores meanwhile. For decoder
    dali."""
    background: str | None = setting(
        None, "Images", "identity", "Under transparent pictures: white, black or RRGGBB; default: as open_clip."
    )
    """Colour under transparent pictures: white, black, or RRGGBB in hexadecimal; default: as open_clip resizes them,
    premultiplied, where what is fully transparent is black."""
    pixels: int | None = setting(PIXELS, "", "identity", "")
    """The rules by which files become pixels, part of a run's identity and not for users to choose. None: those of runs
    that were planned before the rules had a number."""
    decode_threads: int | None = setting(None, "Images", "worker", "Threads that decode (default: one a core).")
    """Threads that decode; default: one for each core."""
    decode_timeout: float = setting(60.0, "Images", "worker", "Seconds for a suspect image, tried alone.")
    """Seconds that a suspect image, tried alone after a worker has ended, may take before it gets status timeout."""
    worker_timeout: float = setting(600.0, "Images", "worker", "Seconds until a silent worker is restarted.")
    """Seconds without a finished batch after which a worker counts as hung and is started again."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("max_pixels", self.max_pixels, 1)
        if self.pixels not in (None, PIXELS):
            raise SettingError(f"pixels {self.pixels} is not known to this version of clipbatch: leave it out")
        if self.background is not None and not re.fullmatch(r"white|black|[0-9a-fA-F]{6}", self.background):
            raise SettingError(f"background {self.background!r} is no colour: use white, black or RRGGBB, as in ff8000")
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

    @property
    def background_rgb(self) -> tuple[int, int, int] | None:
        """`background` as red, green and blue, 0 to 255."""
        if self.background is None:
            return None
        red, green, blue = bytes.fromhex({"white": "ffffff", "black": "000000"}.get(self.background, self.background))
        return red, green, blue


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings(Checked):
    """What is written."""

    score: Score = setting("auto", "Output", "output", "auto (as trained), softmax, sigmoid or cosine.")
    """auto: as the model was trained, sigmoid for the SigLIP family and softmax for the others."""
    layout: Layout = setting("list", "Output", "output", "list: all scores in one column; wide: one each; top-k.")
    """list: a column `scores` with a list in label order; wide: a column for each label; top-k: the best labels."""
    top_k: int | None = setting(None, "Output", "output", "Write the K best labels instead of all scores.")
    """How many labels the layout top-k keeps, 5 by default; giving it chooses that layout."""
    scores_dtype: ScoresDtype = setting("float32", "Output", "output", "float32 or float16.")
    """Of the scores' column or columns; the best label's score stays float32."""
    compression: Compression = setting("zstd", "Output", "output", "zstd, lz4, snappy, gzip or none.")
    embeddings: bool = setting(False, "Output", "output", "Also write each image's embedding.")
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

    engine: EngineName = setting(
        "local",
        "Machines",
        "placement",
        "local, or ray: on the Ray cluster of RAY_ADDRESS, or else one on this machine.",
    )
    """local: workers on this machine. ray: workers on a Ray cluster."""
    gpus: str | None = setting(
        None, "Machines", "placement", "all, or numbers as in 0,1; default: all that are visible."
    )
    """all, or numbers as in 0,1; default: all that are visible, if there is one."""
    workers: int | None = setting(None, "Machines", "invocation", "Worker processes on a CPU, or on a Ray cluster.")
    """Worker processes on a CPU, which share its cores; default: 1. On a Ray cluster, how many to ask it for; default:
    as many as it has room for."""
    cpus_per_worker: int | None = setting(
        None, "Machines", "placement", "Cores that a worker asks a Ray cluster for; default: a node's, or a GPU's."
    )
    """Cores that each worker asks the Ray cluster for; default: all of a node, or its GPU's share of them."""
    rank: int | None = setting(
        None, "Machines", "placement", "Which of --world-size processes this is, from 0; default: as Slurm says."
    )
    """Which of `world_size` processes this is, from 0; default: as Slurm, torchrun or Kubernetes says."""
    world_size: int | None = setting(None, "Machines", "placement", "How many processes share the run.")
    shards: str | None = setting(None, "Machines", "placement", "Do only these: 3,5-9, or a FILE of such numbers.")
    profile: str | None = setting(
        None, "Machines", "worker", "Write a Chrome trace of the first batches to this FILE (one a worker)."
    )
    """File for a Chrome trace of each worker's first batches; where there are several, numbered."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.gpus is not None and not re.fullmatch(r"all|[0-9]+(,[0-9]+)*", self.gpus):
            raise SettingError(f"gpus {self.gpus!r} is not known: use all, or numbers as in 0,1")
        at_least("workers", self.workers, 1)
        at_least("cpus_per_worker", self.cpus_per_worker, 1)
        at_least("rank", self.rank, 0)
        at_least("world_size", self.world_size, 1)
