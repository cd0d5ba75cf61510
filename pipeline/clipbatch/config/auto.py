"""Replace every `auto` setting by a value that suits this machine and the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipbatch.config import Settings, hardware
from clipbatch.config.validation import SettingError

COMPILE_S, COMPILE_GAIN = 90.0, 0.1
# Photographs that a core decodes in a second, and GFLOP/s that it computes. Both are from images/s in reports of
# benchmarks/results; with ViT-B-32, an image costs 8.82 GFLOP.
#     decoding, bf16  2026-11-23-cpu-speed.md: 787 and 66 on 2 cores with hardware for bf16
#     fp32            2026-11-28-cpu-speed.md: 12 on 2 cores without hardware for bf16, for which `auto` is fp32
#     fp16            2026-11-30-cpu-precision.md: 2.00 on a core without hardware for fp16
CORE_DECODES = 400
CORE_GFLOPS = {"fp32": 53, "bf16": 290, "fp16": 17.6}


def resolve(settings: Settings, gflop: float, frozen: Mapping[str, Any] | None = None) -> Settings:
    """Return `settings` with every `auto` replaced.

    gflop: cost of one image in the image encoder, in 10**9 multiply and add operations.
    frozen: the identity of the run directory, if it holds a run; its values win over those for this machine.
    """
    frozen = frozen or {}
    gpu = device_of(settings).startswith("cuda")

    def resolved(name: str, value: Any, default: Any) -> Any:
        # An older run's identity lacks the settings that were added later. They stay None, which means "as before".
        if value not in (None, "auto"):
            return value
        return frozen.get(name) if frozen else default

    precision = resolved("precision", settings.model.precision, "fp16" if gpu else cpu_precision())
    if precision == "fp8" and not gpu:
        raise SettingError("precision fp8 needs a GPU, and this runs on a CPU: use bf16, fp32 or auto")
    if settings.model.compile == "on" and not gpu:
        raise SettingError(
            "compile on is for GPUs, and this runs on a CPU, where compiling takes minutes: leave it out"
        )
    batch_size = resolved(
        "batch_size",
        settings.model.batch_size,
        _batch_size(settings.output.shard_size, 256 if gpu else _cpu_batch_size(gflop)),
    )
    shard_size = settings.output.shard_size
    if shard_size is None:
        shard_size = frozen.get("shard_size") or one_minute_shard_size(gpu, gflop, precision, batch_size)
    return settings.replace(
        precision=precision,
        compile=frozen.get("compile", "auto") if settings.model.compile == "auto" else settings.model.compile,
        compile_asked=settings.model.compile != "auto",
        decoder_asked=settings.decode.decoder != "auto",
        decoder=resolved("decoder", settings.decode.decoder, "dali" if gpu else "torchvision"),
        pixels=frozen.get("pixels") if frozen else settings.decode.pixels,
        batch_size=batch_size,
        shard_size=shard_size,
    )


def device_of(settings: Settings) -> str:
    """The device that `settings` name. `auto` means the GPU if this machine has one, else the CPU."""
    if settings.model.device != "auto":
        return settings.model.device
    return "cuda" if hardware.has_gpu() else "cpu"


def _cpu_batch_size(gflop: float) -> int:
    """32 images, or fewer if one core would need more than about two minutes for them in fp32."""
    return next(size for size in (32, 16, 8, 4, 2, 1) if size * gflop <= 10_000 or size == 1)


def one_minute_shard_size(gpu: bool, gflop: float, precision: str, batch_size: int) -> int:
    """Rows in a shard that takes about a minute: `batch_size` times a power of two.

    CPU: by `cpu_rate`. GPU: a guess from data sheets, the slower of 5,000 images/s and 200 TFLOP/s.
    """
    if gpu:
        rate = 1 / max(1 / 5_000, gflop / 200_000)
    else:
        rate = cpu_rate(gflop, "bf16" if precision == "bf16" else "fp32", hardware.cores())
    batches = max(1.0, 60 * rate / batch_size)
    return int(batch_size * 2 ** int(batches).bit_length() // 2)


def cpu_precision() -> str:
    """The precision that `auto` means on this machine's CPU."""
    return "bf16" if hardware.has_fast_bf16() else "fp32"


def cpu_rate(gflop: float, precision: str, cores: int) -> float:
    """Images per second that `cores` cores of a CPU label, as measured (`CORE_GFLOPS`). gflop: as in `resolve`."""
    return cores / (1 / CORE_DECODES + gflop / CORE_GFLOPS[precision])


def worth_compiling(settings: Settings, rows: int, gflop: float) -> bool:
    """Whether compiling the image encoder probably saves more time than it takes. gflop: as in `resolve`.

    The numbers are guesses, since nothing has been measured on a GPU: compiling takes 90 seconds per worker and saves a
    tenth of the encoder's time at 200 TFLOP/s. With fp8, always compile on a GPU: without it, scaling the activations
    costs more than fp8 gains.
    """
    if not device_of(settings).startswith("cuda") or not hardware.has_compiler():
        return False
    return settings.model.precision == "fp8" or COMPILE_GAIN * rows * gflop / 200_000 > COMPILE_S


def _batch_size(shard_size: int | None, preferred: int) -> int:
    """`preferred`; if `shard_size` is set, the largest divisor of it that is not larger than `preferred`."""
    if shard_size is None:
        return preferred
    size = next(size for size in range(min(preferred, shard_size), 0, -1) if shard_size % size == 0)
    if size * 2 < min(preferred, shard_size):
        near = -(-shard_size // preferred) * preferred
        raise SettingError(f"shard_size {shard_size} is not a multiple of a suitable batch size: use {near}")
    return size
