"""Which decoder gets an image: its header and row number decide, never how long anything takes.

What the header alone decides is worked out once for all images with that header: many share a size, and while Python
works, no other thread of it does.
"""

from __future__ import annotations

from typing import NamedTuple

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode import pil
from clipbatch.stages.decode.cpu_decoders import ReducedDecoder, TorchvisionDecoder, reduction
from clipbatch.stages.decode.cpu_pool import GIANT_PIXELS, goes_to_cpu
from clipbatch.stages.decode.engines import goes_to_engines
from clipbatch.stages.decode.geometry import Geometry, Target, geometry_of, upright_size
from clipbatch.stages.decode.header import Header, inspect
from clipbatch.stages.decode.pixels import DecodeJob, FastDecoder
from clipbatch.types import Decoded, Encoded, Picture, ReadBatch, Reject

# Smaller images go to Pillow. DALI's edges differ from Pillow's, which shows when one pixel becomes a whole patch.
SMALLEST_SIDE = 8
# Longer images go to Pillow, which resizes only the kept region. torch would first build a very long strip.
EXTREME_ASPECT = 8
# Headers whose choice is kept.
_MAX_KNOWN = 4096


class Choices(NamedTuple):
    """Who decodes the images of a batch."""

    # For the fast decoder of the lane.
    jobs: list[DecodeJob]
    # For other decoders, on CPU cores.
    for_cpu: list[tuple[FastDecoder, DecodeJob]]
    # Slots whose image is for Pillow.
    for_pillow: list[int]
    # By slot, the outcome if its job succeeds.
    outcomes: list[Decoded | Reject | None]


class _Choice(NamedTuple):
    """A fast decoder for all images with a certain header."""

    outcome: Decoded
    geometry: Geometry
    # None: that of the lane.
    decoder: FastDecoder | None
    # Whether a share of the rows goes to the GPU's JPEG engines.
    for_engines: bool = False
    # The choice for rows that CPU cores decode while DALI does the others; None: Pillow.
    on_core: _Choice | None = None


class Chooser:
    """Chooses for the batches of a decode stage. Several threads use it at the same time."""

    def __init__(self, settings: DecodeSettings, target: Target) -> None:
        self._settings, self._target = settings, target
        self.torchvision, self._reduced = (make(target.interpolation) for make in (TorchvisionDecoder, ReducedDecoder))
        self._with_dali = settings.decoder == "dali"
        self._known: dict[Header, _Choice | Reject | None] = {}

    def __call__(self, batch: ReadBatch, decoder: FastDecoder | None, engine_share: float | None) -> Choices:
        """decoder: that of the lane; None: Pillow decodes all. engine_share: of JPEGs, for the JPEG engines."""
        choices = Choices([], [], [], [None] * len(batch.slots))
        jobs, for_cpu, for_pillow, outcomes = choices
        known, rules = self._known, self._settings.pixels
        cpu_share = self._settings.cpu_share if self._with_dali else 0.0
        for slot, content in enumerate(batch.slots):
            if not isinstance(content, Encoded):
                if isinstance(content, Picture):
                    for_pillow.append(slot)
                else:
                    outcomes[slot] = content
                continue
            header = inspect(content.data, rules) if decoder else None
            if decoder is None or header is None:
                for_pillow.append(slot)
                continue
            try:
                choice = known[header]
            except KeyError:
                choice = self._add(header, decoder)
            row_id = batch.source.start + slot
            if cpu_share and isinstance(choice, _Choice) and choice.decoder is None:
                choice = choice.on_core if goes_to_cpu(row_id, 0, cpu_share) else choice
            if isinstance(choice, _Choice):
                outcomes[slot] = choice.outcome
                engines = choice.for_engines and engine_share is not None and goes_to_engines(row_id, engine_share)
                job = DecodeJob(slot, content.data, choice.geometry, engines)
                if choice.decoder is None:
                    jobs.append(job)
                else:
                    for_cpu.append((choice.decoder, job))
            elif choice is None:
                for_pillow.append(slot)
            else:
                outcomes[slot] = choice
        return choices

    def _add(self, header: Header, decoder: FastDecoder) -> _Choice | Reject | None:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        choice = self._known[header] = self._choice(header, decoder)
        return choice

    def _choice(self, header: Header, decoder: FastDecoder) -> _Choice | Reject | None:
        """The choice for all images with this header; None if Pillow decodes them."""
        if header.kind not in decoder.kinds:
            return None
        if self._with_dali and header.is_rgb and self._settings.pixels is not None:
            return None  # nvImageCodec takes every JPEG of three components for YCbCr
        orientation = header.orientation if self._settings.orientation == "upright" else 1
        width, height = upright_size(header.width, header.height, orientation)
        if width * height > self._settings.max_pixels:
            return pil.too_large(width, height, self._settings.max_pixels)
        shorter, longer = (width, height) if width < height else (height, width)
        if shorter < SMALLEST_SIDE or longer > EXTREME_ASPECT * shorter:
            return None
        geometry = geometry_of(header.height, header.width, orientation, self._target)

        def by(fast: FastDecoder) -> _Choice:
            return _Choice(Decoded(width=width, height=height, decoder=fast.name), geometry, fast)

        if self._settings.jpeg_scale == "reduced" and header.kind in self._reduced.kinds and reduction(geometry) > 1:
            return by(self._reduced)
        on_core = by(self.torchvision) if header.kind in self.torchvision.kinds else None
        if self._with_dali and width * height > GIANT_PIXELS:
            return on_core
        return by(decoder)._replace(decoder=None, for_engines=header.kind == "jpeg", on_core=on_core)
