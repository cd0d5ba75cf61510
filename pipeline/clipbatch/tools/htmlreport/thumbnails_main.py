"""The process that makes thumbnails: `python -m clipbatch.tools.htmlreport.thumbnails_main RUN_DIR`.

`thumbnails` starts it. It first says that it is ready. Then it takes row_ids and answers each with `{"webp": picture}`
in base64, or with `{"why": words}` if there is no picture. It writes nothing. Only this module of the report opens
images. They may be hostile, so the process may die.
"""

from __future__ import annotations

import base64
import io
import sys

from PIL import Image, UnidentifiedImageError

from clipbatch.config import DecodeSettings
from clipbatch.config.memory_limits import limit_memory
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.stages.pillow import MAX_SCANS, TURNS, rgb, scans, with_image
from clipbatch.stages.read import Fetch
from clipbatch.types import Reject
from clipbatch.workers.child import Parent, serve

# The longer side of a thumbnail, pixels.
SIDE = 160
# The limit for a thumbnail. A photograph takes 3,000 to 6,000.
MAX_BYTES = 9_000
# Larger images are not decoded for a thumbnail. A JPEG may have 64 times as many: its sides are decoded at an eighth.
MAX_PIXELS = 50_000_000
# The limit for address space. Arrow alone reserves more than one GiB.
_MEMORY_MIB = 4096


def main() -> None:
    serve(answer)


def answer(parent: Parent) -> None:
    """Answer each row_id that the parent sends with its picture, or with the reason why there is none."""
    run = RunDir(sys.argv[1])
    rows = Rows(run, run.plan())
    limit_memory(_MEMORY_MIB)
    parent.send("ready")
    for row_id in parent.messages():
        try:
            parent.send({"webp": base64.b64encode(rows.thumbnail(row_id)).decode()})
        except UnidentifiedImageError:  # its text contains a memory address
            parent.send({"why": "not an image of a known kind"})
        except Exception as error:  # Pillow's parsers raise all kinds of exceptions for damaged files
            parent.send({"why": f"{str(error) or type(error).__name__}".splitlines()[0][:300]})


class Rows:
    """The images of a run, by row_id."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        settings = plan.run_settings()
        self._plan, self._manifest, self._fetch = plan, Manifest(run, plan), Fetch(settings.read)
        self._decode = settings.decode

    def thumbnail(self, row_id: int) -> bytes:
        """The picture of a row as a small WebP. Raises: any exception, with the reason in words."""
        return to_webp(shrink(self._bytes(row_id), self._decode))

    def _bytes(self, row_id: int) -> bytearray:
        shard = row_id // self._plan.shard_size
        row = self._manifest.rows(shard).slice(row_id - self._plan.shard_rows(shard).start, 1)
        (item,) = self._manifest.items(row)
        content = item.reject or self._fetch(item)
        if isinstance(content, Reject):
            raise ValueError(f"{content.status}: {content.error}")
        return content.data


def shrink(data: bytearray, settings: DecodeSettings) -> Image.Image:
    """The whole image in RGB, with a longer side of at most `SIDE` pixels, and without metadata."""
    if scans(data) > MAX_SCANS:
        raise ValueError("too many scans")

    def small(image: Image.Image, orientation: int) -> Image.Image:
        if image.width * image.height > settings.max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels, over the limit of {settings.max_pixels}")
        image.draft(None, (2 * SIDE, 2 * SIDE))  # lets a JPEG decode at a smaller scale, which is much faster
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, too many to decode for a thumbnail")
        picture = rgb(image, settings.background_rgb)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        if settings.orientation == "upright" and orientation > 1:
            picture = picture.transpose(TURNS[orientation])
        return picture.convert("RGB")

    image = with_image(data, small)
    image.info.clear()  # a page must not reveal where and when a photograph was taken
    return image


def to_webp(image: Image.Image) -> bytes:
    """`image` as a WebP of at most `MAX_BYTES`."""
    for quality in (72, 50, 30, 15, 0):
        out = io.BytesIO()
        image.save(out, "WEBP", quality=quality, method=4)
        if out.tell() <= MAX_BYTES:
            return out.getvalue()
    raise ValueError(f"its thumbnail is larger than {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
