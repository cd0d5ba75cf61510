"""The data that the stages pass to one another.

Shape suffixes of arrays and tensors, used everywhere:
    B batch slot   C colour channel (RGB)   H height   W width   D embedding   L label   O output of a head

An `Item` is one row of the manifest. The read stage turns it into `Encoded` bytes. The decode stage turns these into
pixels in a slot of the batch and a `Decoded` record. Each stage may turn it into a `Reject` instead. A reject keeps its
slot, so the other rows stay in theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor
    from torch.cuda import Event


Status = Literal[
    "ok", "missing", "unreadable", "timeout", "empty", "corrupt", "truncated", "unsupported", "too_large", "crashed"
]
STATUSES: tuple[Status, ...] = get_args(Status)

DecoderName = Literal["dali", "torchvision", "pil", "open_clip"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)

# How serious a line of the log is.
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where an image is in its container: an archive, or a table with a column of images."""

    # Archive: first byte, of the data or of a header, depending on `method`. Table: row number, from 0.
    start: int
    # Archive: stored bytes of the member. Table: size of the whole file in bytes, which shows that a file was replaced.
    length: int
    # Archive: one of the methods of `storage.archives`. Table: `column:NAME`.
    method: str


class Item(NamedTuple):
    """One manifest row. A tuple, as `Encoded` is: one is made for each image, and a dataclass takes three times as
    long."""

    row_id: int
    # As listed, unchanged.
    uri: str
    # What to open: the image, or the container if there is a `span`. A url, or a path; surrogates in it stand for bytes
    # that are not UTF-8.
    path: str
    span: Span | None = None
    # `--root`, if it applies to this row: redirects must not leave it.
    fence: str | None = None
    # The image itself, if the caller passed it in memory. Then there is nothing to open.
    content: Encoded | Picture | None = None
    # Set if the image must not be opened: it killed a worker before, or its path leaves `--root`.
    reject: Reject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Why an image has no pixels: a status and a sentence."""

    status: Status
    error: str
    # Size of the upright image in pixels; None if the header could not be read.
    width: int | None = None
    height: int | None = None


class Encoded(NamedTuple):
    """The bytes of one image file."""

    data: bytearray


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image that the caller passed as a Pillow image. If Pillow has not loaded it yet, loading may still fail."""

    image: Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What is known of an image whose pixels are in the batch."""

    # Size of the upright image in pixels, before resizing.
    width: int
    height: int
    decoder: DecoderName


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemBatch:
    """Consecutive rows of one shard: slot b holds row `start + b`."""

    shard: int
    # row_id of slot 0.
    start: int
    # None for a row that this pass skips (`--retry-bad` repeats bad rows only).
    items: tuple[Item | None, ...]
    # The manifest's row for each slot: row_id, uri, and the columns copied from the input.
    rows: pa.Table
    # Whether this is the last batch of its shard.
    last: bool
    # False if this pass repeats only some rows of the shard.
    whole: bool = True
    # True if the new part may replace one with more ok rows.
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBatch:
    """An `ItemBatch` after the read stage."""

    source: ItemBatch
    slots: tuple[Encoded | Picture | Reject | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBatch:
    """A batch after the decode stage. Always of the run's full batch size; unused slots hold the fill colour."""

    source: ItemBatch
    outcomes: tuple[Decoded | Reject | None, ...]
    # uint8 RGB, 0 to 255, on the encoder's device.
    pixels_BCHW: Tensor
    # On a GPU: recorded once the pixels are complete. The stream that uses them must wait for this event, and the
    # caller must keep the batch until that work is done.
    ready: Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedCaptions:
    """How the images of a batch compare with their captions, in host memory."""

    # float32; without meaning where there is no image.
    similarity_B: NDArray[np.float32]
    # int32: tokens of the caption before it is cut; -1 if there is no caption to compare with.
    tokens_B: NDArray[np.int32]
    # The captions' embeddings; None unless the run saves embeddings.
    caption_BD: NDArray[np.float16] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBatch:
    """A batch after the image encoder. The encoder has waited for the result, so nobody else needs to."""

    source: ItemBatch
    outcomes: tuple[Decoded | Reject | None, ...]
    # Vectors of unit length: float32 on the encoder's device, or float16 if read from a run's saved embeddings. Slots
    # without an image hold meaningless values.
    image_BD: Tensor | NDArray[np.float16]
    # None unless the run has captions.
    captions: ComparedCaptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """A batch's results in host memory, without the unused slots at its end."""

    source: ItemBatch
    outcomes: tuple[Decoded | Reject | None, ...]
    scores_BL: NDArray[np.float32]
    # None unless the run saves embeddings.
    image_BD: NDArray[np.float16] | None
    # None unless the run has captions.
    captions: ComparedCaptions | None = None
    # The outputs of all heads in turn; None if the run has no heads.
    heads_BO: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDone:
    """A finished shard. Its part file is published, unless a better one was there already."""

    shard: int
    rows: int
    # Number of rows with each status.
    counts: dict[str, int]
    # Why the worker kept the earlier part file; None if it published the new one.
    kept: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker reports when it ends."""

    # Seconds and load of each stage, as `flow.Flow.times` returns them.
    times: dict[str, dict[str, float]]
    # Peak resident memory of the process, in MiB.
    peak_mib: int
    # Name and peak memory of the device, and how memory and precision settings turned out.
    facts: dict[str, str | float]
    # By store or host that the worker waited for: `tries_again`, the number of further tries, and `waited_s`, seconds.
    waits: dict[str, dict[str, float]] = field(default_factory=dict)


def counts_text(counts: Mapping[str, int]) -> str:
    """Row counts as text: `30 ok, 5 missing, 1 empty`. counts: rows by status."""
    bad = sorted(((count, status) for status, count in counts.items() if status != "ok"), reverse=True)
    return ", ".join([f"{counts.get('ok', 0)} ok", *(f"{count} {status}" for count, status in bad)])
