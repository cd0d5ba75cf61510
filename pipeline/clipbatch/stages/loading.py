"""Loads a model, and builds read, decode and encode stages around it that work on this device.

On a GPU, and wherever DALI decodes, `fit` checks the stages before it hands them out (`first_contact`). What it has to
change, and what it measures, become facts of the model (`records.FITTED`), which the first worker freezes in
`model.json` for all others.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from clipbatch.config import Settings, hardware
from clipbatch.errors import UnfitSeatError, brief
from clipbatch.rundir.records import ModelFacts, frozen_choices
from clipbatch.stages import first_contact
from clipbatch.stages.cuda import is_device_error
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.engines import SIDES, calibrated_share, count_engines, size_class
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, Model, load
from clipbatch.stages.flow import Stage
from clipbatch.stages.journal import Journal
from clipbatch.stages.orientation import jpeg_pixels
from clipbatch.stages.read import Backpressure, Read, Refusals
from clipbatch.types import EmbeddedBatch, ItemBatch, PixelBatch, ReadBatch

_log = logging.getLogger(__name__)


class Decoding(Protocol):
    """The decode stage: `Decode`, or one that works in another process."""

    # How many threads may call it at the same time.
    threads: int

    def __call__(self, batch: ReadBatch) -> PixelBatch:
        """Decode all slots. The slot of an image that cannot be decoded stays blank."""

    def close(self) -> None:
        """End its threads. No batch may be in work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A loaded model and the stages that do not depend on a run. A process can keep them from one run to the next."""

    model: Model
    read: Read
    decode: Decoding
    encode: Encode
    # Those of `records.FITTED` that were changed or measured for this device, or that the run's first worker froze.
    facts: ModelFacts = field(default_factory=ModelFacts)

    @staticmethod
    def around(model: Model, settings: Settings, batch_size: int, device: str) -> LoadedModel:
        """Build the stages of `settings` for a model that has been loaded."""
        target = Target.from_facts(model.facts())
        decode = Decode(settings.decode, target, batch_size=batch_size, device=device)
        return LoadedModel.joined(model, decode, settings, batch_size, device)

    @staticmethod
    def joined(model: Model, decode: Decode, settings: Settings, batch_size: int, device: str) -> LoadedModel:
        """As `around`, with a decode stage that is there already."""
        encode = Encode(
            model,
            precision=settings.model.precision,
            device=device,
            batch_size=batch_size,
            compiles=settings.model.compile == "on" and device != "cpu",
        )
        read = Read(settings.read, batches=4 * decode.threads)
        return LoadedModel(model=model, read=read, decode=decode, encode=encode)

    def stages(
        self,
        gate: Backpressure,
        journal: Journal | None = None,
        encode: Callable[[PixelBatch], EmbeddedBatch] | None = None,
        refusals: Refusals | None = None,
    ) -> list[Stage]:
        """The stages read, decode and encode, for batches that `gate` has admitted.

        journal: each batch is noted there before it is decoded. encode: replaces the encode stage of this model.
        """

        def read(batch: ItemBatch) -> ReadBatch:
            with refusals.reading() if refusals else contextlib.nullcontext():
                encoded = self.read(batch, refusals)
            gate.measured(encoded)
            return encoded

        def decode(batch: ReadBatch) -> PixelBatch:
            if journal:
                journal.enter(batch.source.start, len(batch.slots))
            pixels = self.decode(batch)
            gate.release(batch)
            return pixels

        return [
            Stage(name="read", work=read, threads=self.read.batches),
            Stage(name="decode", work=decode, threads=self.decode.threads),
            Stage(name="encode", work=encode or self.encode, threads=self.encode.threads),
        ]


def fit(
    settings: Settings,
    batch_size: int,
    device: str,
    standing: ModelFacts | None = None,
    sample: Callable[[], list[bytearray]] = list,
) -> LoadedModel:
    """Load the model of `settings`, and build stages that have been checked on `device`, if that is a GPU or decodes
    with DALI.

    standing: what the first worker froze, if there was one, or an earlier increment: then nothing is chosen anew.
    sample: returns some files of the run, whose size decides the share of the JPEG engines.
    Raises: InputError if the model cannot be loaded. UnfitSeatError, with the remedy, if the device cannot do what
    `settings` and `standing` ask.
    """
    facts = frozen_choices(standing or {})
    settings = settings.replace(**facts)
    model = load(settings.model)
    if not (device.startswith("cuda") or settings.decode.decoder == "dali"):
        loaded = LoadedModel.around(model, settings, batch_size, device)
        loaded.facts.update(facts)
        return loaded
    decode, pixels = _decoder(settings, Target.from_facts(model.facts()), batch_size, device, standing)
    if (name := decode.decoder) != settings.decode.decoder:
        facts["decoder"] = name
        settings = settings.replace(decoder=name, hw_decoder_load=None, cpu_share=0.0)
    if device.startswith("cuda") and name == "dali" and settings.decode.hw_decoder_load is None:
        facts["hw_decoder_load"] = engine_share(decode, sample())
        decode.engine_share = facts["hw_decoder_load"]
    exact_BD = _in_fp32(model, pixels) if device.startswith("cuda") else None
    loaded = LoadedModel.joined(model, decode, settings, batch_size, device)
    if why := loaded.encode.not_compiled:
        if standing is not None or settings.model.compile_asked is not False:
            raise UnfitSeatError(f"--compile on: {why}; use --compile off for a new run, or another machine")
        _log.warning(f"{why}; the run goes on without it")
        facts["compile"] = "off"
    if exact_BD is not None:
        try:
            first_contact.check_encoder(loaded.encode, pixels, exact_BD)
        except first_contact.UnfitError as error:
            raise UnfitSeatError(
                f"{_name_of(device)} cannot be trusted: {error}; try --precision fp32 or --compile off in a new run, "
                "and test the GPU"
            ) from error
    loaded.facts.update(facts)
    return loaded


def _decoder(
    settings: Settings, target: Target, batch_size: int, device: str, standing: ModelFacts | None
) -> tuple[Decode, PixelBatch]:
    """A decode stage that passes `check_decoder`, and pixels of it: with the decoder of `settings`; or with torchvision
    if `auto` chose that, and no worker has begun."""
    asked = settings.decode.decoder
    instead = standing is None and settings.decode.decoder_asked is False and asked == "dali"
    for name in (asked, *(["torchvision"] if instead else [])):
        now = settings.replace(decoder=name, **({} if name == asked else {"hw_decoder_load": None, "cpu_share": 0.0}))
        decode: Decode | None = None
        try:
            decode = Decode(now.decode, target, batch_size=batch_size, device=device)
            return decode, first_contact.check_decoder(decode, now.decode, target)
        except Exception as error:  # libraries that are missing or broken raise all kinds of exceptions
            if decode is not None:  # what its lanes hold of the GPU's memory is for the next one
                decode.close()
            why = f"{name} cannot be used on {_name_of(device)}: {_reason(error)}"
            if is_device_error(error) or not instead or name != asked:
                remedy = "see clipbatch doctor, or use --decoder torchvision"
                raise UnfitSeatError(f"--decoder {asked}: {why}; {remedy}") from error
        _log.warning(f"{why}; torchvision decodes on the CPU cores instead, in the whole run (see clipbatch doctor)")
    raise AssertionError("unreachable")


def _reason(error: Exception) -> str:
    if isinstance(error, first_contact.UnfitError):
        return str(error)
    if isinstance(error, ImportError):
        return f"it is not installed, or one of its libraries is missing ({brief(error)})"
    return brief(error)


def engine_share(decode: Decode, files: list[bytearray]) -> float:
    """The share of JPEGs for the JPEG engines, for images as large as `files`; 0 if there are no engines."""
    engines, why = count_engines()
    if not engines:
        _log.warning(f"no JPEG engines: {why}; CUDA decodes all JPEGs, which is slower")
        return 0.0
    sizes = sorted(pixels for data in files if (pixels := jpeg_pixels(data))) or [640 * 480]
    size = size_class(sizes[len(sizes) // 2])
    # JPEGs of about that size. The files themselves may be damaged, and no quarantine is at work yet.
    jpegs = first_contact.primer(*SIDES[size])
    version = re.search(r"\d+\.\d+(\.\d+)?", hardware.text_of(Path("/proc/driver/nvidia/version")))
    return calibrated_share(
        lambda share: decode.rate(jpegs, share),
        gpu=torch.cuda.get_device_name(),
        driver=version[0] if version else "",
        cores=hardware.cores(),
        size=size,
    )


def _in_fp32(model: Model, pixels: PixelBatch) -> torch.Tensor:
    """What `check_encoder` compares with; before the model is cast."""
    return first_contact.reference_features(copy.deepcopy(model.module.visual), model, pixels.pixels_BCHW)


def _name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "this CPU"
