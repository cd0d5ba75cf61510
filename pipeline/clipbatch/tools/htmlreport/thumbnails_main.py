"""A process that may die: `python -m clipbatch.tools.htmlreport.thumbnails_main RUN_DIR`, started by `thumbnails`.

Says that it is ready, takes row_ids and answers each: `{"webp": picture}` in base64, or `{"why": words}` if there is
none. Writes nothing. The only module of the report that opens images, which
anybody may have made.
"""

from __future__ import annotations

import base64
import io
import sys

from PIL import Image, UnidentifiedImageError

from clipbatch.config import DecodeSettings
from clipbatch.config.memory_limits import limit_memory
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.stages.pillow import MAX_SCANS, TURNS, rgb, scans, with_image
from clipbatch.stages.read import Fetch
from clipbatch.types import Reject
from clipbatch.workers.child import Parent, serve

# Pixels of a thumbnail's longer side.
SIDE = 160
# Of a thumbnail. A photograph takes 3,000 to 6,000.
MAX_BYTES = 9_000
# To hold in memory for a thumbnail; of a JPEG an eighth of each side is decoded where that is enough.
MAX_PIXELS = 50_000_000
# Of address space: Arrow alone reserves more than one GiB.
_MEMORY_MIB = 4096


def main() -> None:
    serve(answer)


def answer(parent: Parent) -> None:
    """Answer each row_id that the parent sends with its picture, or with why there is none."""
    run = RunDir(sys.argv[1])
    rows = Rows(run, run.plan())
    limit_memory(_MEMORY_MIB)
    parent.send("ready")
    for row_id in parent.messages():
        try:
            parent.send({"webp": base64.b64encode(rows.thumbnail(row_id)).decode()})
        except UnidentifiedImageError:  # its text is an address in memory
            parent.send({"why": "not an image of a known kind"})
        except Exception as error:  # Pillow raises whatever its parsers stumble over
            parent.send({"why": f"{str(error) or type(error).__name__}".splitlines()[0][:300]})


class Rows:
    """The images of a run, by row."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        settings = plan.run_settings()
        self._plan, self._manifest, self._fetch = plan, Manifest(run, plan), Fetch(settings.read)
        self._decode = settings.decode

    def thumbnail(self, row_id: int) -> bytes:
        """The picture of a row as a small WebP. Raises: anything, with the reason in words."""
        return encoded(shrunk(self._bytes(row_id), self._decode))

    def _bytes(self, row_id: int) -> bytearray:
        shard = row_id // self._plan.shard_size
        row = self._manifest.rows(shard).slice(row_id - self._plan.shard_rows(shard).start, 1)
        (item,) = self._manifest.items(row)
        found = item.reject or self._fetch(item)
        if isinstance(found, Reject):
            raise ValueError(f"{found.status}: {found.error}")
        return found.data


def shrunk(data: bytearray, settings: DecodeSettings) -> Image.Image:
    """The whole image as RGB with a longer side of `SIDE` pixels at most, and nothing of its metadata."""
    if scans(data) > MAX_SCANS:
        raise ValueError("too many scans")

    def small(image: Image.Image, orientation: int) -> Image.Image:
        if image.width * image.height > settings.max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels, over the limit of {settings.max_pixels}")
        image.draft(None, (2 * SIDE, 2 * SIDE))  # a JPEG decodes to an eighth much faster
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than a thumbnail is worth")
        made = rgb(image, settings.background_rgb)
        made.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        if settings.orientation == "upright" and orientation > 1:
            made = made.transpose(TURNS[orientation])
        return made.convert("RGB")

    image = with_image(data, small)
    image.info.clear()  # where and when a photograph was taken is nobody's business
    return image


def encoded(image: Image.Image) -> bytes:
    """`image` as WebP of `MAX_BYTES` at most."""
    for quality in (72, 50, 30, 15, 0):
        out = io.BytesIO()
        image.save(out, "WEBP", quality=quality, method=4)
        if out.tell() <= MAX_BYTES:
            return out.getvalue()
    raise ValueError(f"it cannot be made as small as {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
