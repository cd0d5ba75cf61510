"""The settings of the images: which ones, and how their files are read and decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from clipbatch.config.validation import Checked, SettingError, at_least, setting

Decoder = Literal["auto", "dali", "torchvision", "pil", "open_clip"]
Orientation = Literal["upright", "stored"]
JpegScale = Literal["full", "reduced"]
# Version of the rules that turn files into pixels.
PIXELS = 2
# The images that get other pixels by these rules than by the previous ones.
MOVED = (
    "TIFFs with an orientation, other pictures with one in XMP or behind fill bytes, transparent pictures, gray of "
    "more than 8 bits, and animated PNGs"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings(Checked):
    """The images to label."""

    # Folders, image files, manifests, archives, tables of images, urls; `-` for a text manifest on standard input.
    inputs: tuple[str, ...] = ()
    # None: the folder of the manifest.
    root: str | None = setting(
        None, "Input", "frozen", "Folder or url that a manifest's paths are relative to and may not leave."
    )
    all_files: bool = setting(False, "Input", "identity", "Take every file of a folder, whatever its suffix.")
    # None: the column with a name such as `uri` or `filename`.
    uri_column: str | None = setting(None, "Input", "identity", "Column of a manifest that names the images.")
    # None: decided from the first lines of the file (`inputs.header`).
    no_header: bool | None = setting(
        None, "Input", "identity", "Take the first line of CSV and TSV files as a row, too."
    )
    # None: found by its type, its name and its first values (`inputs.holding`).
    image_column: str | None = setting(None, "Input", "identity", "Column of a table that holds the images' bytes.")
    # None: all. For an archive, these are the suffixes of sidecar files; None: no sidecars.
    columns: tuple[str, ...] | None = setting(
        None, "Input", "identity", "Carry only this column of the input to the output (repeatable, or a,b,c; none: '')."
    )
    # COLUMN or COLUMN:FIELD. In folders and archives, the column is the suffix of the sidecar files.
    caption_column: str | None = setting(
        None,
        "Input",
        "output",
        "Compare each image with its own text: this column, COLUMN:FIELD in JSON, or txt for files beside images.",
    )
    limit: int | None = setting(None, "Input", "identity", "Take only the first N rows.")
    # Take so many rows, drawn uniformly from the whole listing, in the listing's order.
    sample: int | None = setting(None, "Input", "identity", "Take N rows drawn at random from all of the input.")
    seed: int | None = setting(None, "Input", "identity", "Another seed draws another --sample; default: 0.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.caption_column is not None and not self.caption_file:
            raise SettingError(f"caption_column {self.caption_column!r} names no column: use COLUMN or COLUMN:FIELD")
        at_least("limit", self.limit, 1)
        at_least("sample", self.sample, 1)
        at_least("seed", self.seed, 0)

    @property
    def caption_file(self) -> str | None:
        """The suffix of the files with captions, without its dot; the column that they become."""
        return None if self.caption_column is None else self.caption_column.partition(":")[0].lstrip(".")

    @property
    def caption_names(self) -> tuple[str, ...]:
        """The columns of a table that may hold the captions: `a:b` is field b of column a, unless it is a name."""
        return () if self.caption_column is None else (self.caption_column, self.caption_column.partition(":")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings(Checked):
    """How files are read."""

    read_threads: int | None = setting(None, "Images", "worker", "Files read at once (default 16; remote 64).")
    # A file that takes longer gets the status timeout.
    read_timeout: float = setting(60.0, "Images", "worker", "Seconds until a file that hangs is given up.")
    # None: 3, and 30 in stores and on the web.
    read_retries: int | None = setting(
        None, "Images", "worker", "Further tries after an I/O error (default 3; remote 30)."
    )
    # None: 100. Only reads count that fail for a reason common to the whole store or host (`stages.read.refusals`).
    max_refused: int | None = setting(
        None, "Images", "worker", "Stop after so many reads in a row that a store refuses (default 100; 0: never)."
    )
    max_bytes: int = setting(256 * 2**20, "Images", "identity", "Larger files get status too_large.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("read_threads", self.read_threads, 1)
        at_least("read_timeout", self.read_timeout, 0.01)
        at_least("read_retries", self.read_retries, 0)
        at_least("max_refused", self.max_refused, 0)
        at_least("max_bytes", self.max_bytes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings(Checked):
    """How encoded images become pixels."""

    # auto: dali on a GPU, torchvision on a CPU. An image that these cannot decode goes to pil. open_clip: open_clip's
    # own transform, which is slow.
    decoder: Decoder = setting("auto", "Images", "identity", "auto, dali, torchvision, pil or open_clip.")
    orientation: Orientation = setting(
        "upright", "Images", "identity", "upright: follow EXIF; stored: ignore it, as open_clip does."
    )
    # The default is Pillow's limit for decompression bombs.
    max_pixels: int = setting(178956970, "Images", "identity", "Larger images get status too_large.")
    # reduced: a JPEG with sides of at least four times the model's input size is decoded at 1/2, 1/4 or 1/8 of its
    # size. That is faster and changes the pixels slightly.
    jpeg_scale: JpegScale = setting(
        "full", "Images", "identity", "full; or reduced: decode big JPEGs at 1/2, 1/4 or 1/8, which is faster."
    )
    # Only for decoder dali.
    hw_decoder_load: float | None = setting(
        None, "Images", "identity", "Share of JPEGs for the GPU's JPEG engines, 0 to 1; default: measured."
    )
    # 0 to 1. The row number decides which images torchvision decodes on the CPU. Only for decoder dali.
    cpu_share: float = setting(
        0.0, "Images", "identity", "Share of images that CPU cores decode while DALI does the others."
    )
    # None: as open_clip resizes them, with premultiplied alpha; fully transparent pixels become black.
    background: str | None = setting(
        None, "Images", "identity", "Under transparent pictures: white, black or RRGGBB; default: as open_clip."
    )
    # Whether the user named the decoder. False: `auto` chose it, and another one may take its place where it does not
    # work. None, as in older runs: it stays.
    decoder_asked: bool | None = setting(None, "", "frozen", "")
    # Version of the rules that turn files into pixels. Users do not choose it. None: the rules from before they had a
    # number; only older runs have this value.
    pixels: int | None = setting(PIXELS, "", "identity", "")
    decode_threads: int | None = setting(None, "Images", "worker", "Threads that decode (default: one a core).")
    # After a worker died, suspect images are tried one by one. One that takes longer gets the status timeout.
    decode_timeout: float = setting(60.0, "Images", "worker", "Seconds for a suspect image, tried alone.")
    # A worker that finishes no batch for this long counts as hung.
    worker_timeout: float = setting(600.0, "Images", "worker", "Seconds until a silent worker is restarted.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("max_pixels", self.max_pixels, 1)
        if self.pixels not in (None, PIXELS):
            raise SettingError(f"this version of clipbatch does not know pixels {self.pixels}: leave it out")
        if self.background is not None and not re.fullmatch(r"white|black|[0-9a-fA-F]{6}", self.background):
            raise SettingError(
                f"background {self.background!r} is not a colour: use white, black or RRGGBB, as in ff8000"
            )
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
