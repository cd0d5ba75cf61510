"""What flows between the stages; types narrow as they flow.

Shape suffixes of arrays and tensors, used everywhere:
    B batch slot   C colour channel (RGB)   H height   W width   D embedding   L label

An `Item` is a row of the manifest. Reading turns it into `Encoded` bytes, decoding into `Decoded` facts beside a
slot of pixels; at any stage it may end as a `Reject`, which keeps its slot so that its neighbours stay in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where in a container an image is."""

    start: int
    """First byte in an archive, of what `method` says; row number in a table of images, from 0."""
    length: int
    """Bytes as they stand in an archive; of a table's whole file, by which one that was exchanged is found out."""
    method: str
    """`container` has those of archives; `column:NAME` for a table's column of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One manifest row."""

    row_id: int
    uri: str
    """Verbatim as listed."""
    path: str
    """What to open: the image, or the container of its `span`; a url, or a path in which surrogates stand for raw
    bytes."""
    span: Span | None = None
    fence: str | None = None
    """`--root`, where it holds for this row: what a redirect may not lead out of."""
    given: Encoded | Picture | None = None
    """The image itself, where it was handed over in memory and there is nothing to open."""
    reject: Reject | None = None
    """Why it is not to be touched: it has ended a worker before, or leads out of `--root`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """An image without pixels: why, in a status and a sentence."""

    status: Status
    error: str
    width: int | None = None
    """Pixels, upright; None where the header could not be read."""
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The bytes of one image file."""

    data: bytearray


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image that was handed over as pixels; a lazy one may still fail when it is loaded."""

    image: Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Facts of an image whose pixels are in the batch."""

    width: int
    """Pixels of the upright image before resizing."""
    height: int
    decoder: DecoderName


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemBatch:
    """Consecutive rows of one shard: slot b holds row `start + b`. Never spans shards."""

    shard: int
    start: int
    """row_id of slot 0."""
    items: tuple[Item | None, ...]
    """None: a slot whose row is not wanted this time (only bad rows are done again)."""
    rows: pa.Table
    """The manifest's row for each slot: row_id, uri, and the columns that are carried through."""
    last: bool
    """True for the last batch of its shard."""
    whole: bool = True
    """False where only some rows of its shard are done again."""
    force: bool = False
    """True where its part may replace one that has more ok rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBatch:
    """An `ItemBatch` after reading."""

    source: ItemBatch
    slots: tuple[Encoded | Picture | Reject | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBatch:
    """A batch after decoding, always of the run's full batch size; unused slots hold the fill colour."""

    source: ItemBatch
    outcomes: tuple[Decoded | Reject | None, ...]
    pixels_BCHW: Tensor
    """uint8 RGB, 0 to 255, on the encoder's device."""
    ready: Event | None = None
    """On a GPU: comes to pass when the pixels are complete. Whoever uses them has its stream wait for it, and keeps the
    batch until its own work on them is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBatch:
    """A batch after the image encoder, which has waited for it: nobody else needs to."""

    source: ItemBatch
    outcomes: tuple[Decoded | Reject | None, ...]
    image_BD: Tensor | NDArray[np.float16]
    """Unit length; float32 on the encoder's device, or float16 as they were saved. Slots without an image hold noise.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """A batch's results in host memory, cut to the rows that there are."""

    source: ItemBatch
    outcomes: tuple[Decoded | Reject | None, ...]
    scores_BL: NDArray[np.float32]
    image_BD: NDArray[np.float16] | None
    """Only where embeddings are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDone:
    """A shard that has been done, and whose part file is published unless a better one was there."""

    shard: int
    rows: int
    counts: dict[str, int]
    """Rows by status."""
    kept: str | None = None
    """Why the part that was there has been kept, in words; None where the new one is published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker has to say of its work at its end."""

    times: dict[str, dict[str, float]]
    """Seconds and load by stage, as `flow.Flow.times` gives them."""
    peak_mib: int
    """Peak resident memory of the process."""
    facts: dict[str, str | float]
    """The device in words, its peak memory, and what came of memory and precision."""
    waits: dict[str, dict[str, float]] = field(default_factory=dict)
    """By store or host that made it wait: `tries_again`, further tries of reads, and `waited_s`, the seconds for which
    it waited before them."""


def counts_text(counts: Mapping[str, int]) -> str:
    """Rows by status in words, as in `30 ok, 5 missing, 1 empty`."""
    bad = sorted(((count, status) for status, count in counts.items() if status != "ok"), reverse=True)
    return ", ".join([f"{counts.get('ok', 0)} ok", *(f"{count} {status}" for count, status in bad)])
