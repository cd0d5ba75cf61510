"""Replace every setting that is `auto` by what suits this machine and the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipbatch.config import Settings, hardware
from clipbatch.config.validation import SettingError

COMPILE_S, COMPILE_GAIN = 90.0, 0.1


def resolve(settings: Settings, gflop: float, frozen: Mapping[str, Any] | None = None) -> Settings:
    """`settings` with every `auto` replaced: as the run directory has it, else as this machine suggests.

    gflop: cost of one image in the image encoder, 10**9 multiply and add operations.
    """
    frozen = frozen or {}
    gpu = device_of(settings).startswith("cuda")

    def chosen(name: str, given: Any, otherwise: Any) -> Any:
        """A setting that came later is not in the identity of an older run: there it stays None, which is as before."""
        if given not in (None, "auto"):
            return given
        return frozen.get(name) if frozen else otherwise

    cpu_precision = "bf16" if hardware.has_fast_bf16() else "fp32"
    precision = chosen("precision", settings.model.precision, "fp16" if gpu else cpu_precision)
    if precision == "fp8" and not gpu:
        raise SettingError("precision fp8 needs a GPU, and this runs on a CPU: use bf16, fp32 or auto")
    if settings.model.compile == "on" and not gpu:
        raise SettingError(
            "compile on is for GPUs, and this runs on a CPU, where compiling takes minutes: leave it out"
        )
    batch_size = chosen(
        "batch_size", settings.batch_size, _batch_size(settings.shard_size, 256 if gpu else cpu_batch(gflop))
    )
    shard_size = settings.shard_size
    if shard_size is None:
        shard_size = frozen.get("shard_size") or minute_of_work(gpu, gflop, precision, batch_size)
    return settings.replace(
        precision=precision,
        compile=frozen.get("compile", "auto") if settings.model.compile == "auto" else settings.model.compile,
        decoder=chosen("decoder", settings.decode.decoder, "dali" if gpu else "torchvision"),
        pixels=frozen.get("pixels") if frozen else settings.decode.pixels,
        batch_size=batch_size,
        shard_size=shard_size,
    )


def device_of(settings: Settings) -> str:
    """The device of `settings` on this machine; auto: its GPU if there is one."""
    if settings.model.device != "auto":
        return settings.model.device
    return "cuda" if hardware.has_gpu() else "cpu"


def cpu_batch(gflop: float) -> int:
    """32 images, or fewer where one core would take more than about two minutes for them in fp32."""
    return next(size for size in (32, 16, 8, 4, 2, 1) if size * gflop <= 10_000 or size == 1)


def minute_of_work(gpu: bool, gflop: float, precision: str, batch_size: int) -> int:
    """Rows in a shard that takes about a minute, a power of two times `batch_size`.

    CPU: a core decodes about 400 photographs a second and multiplies at 80 (fp32) or 290 (bf16) GFLOP/s, measured on
    ViT-B-32 on a core of an EPYC of 2025. GPU: a guess from data sheets, 5,000 images/s or 200 TFLOP/s, whichever is
    the slower.
    """
    if gpu:
        rate = 1 / max(1 / 5_000, gflop / 200_000)
    else:
        rate = hardware.cores() / (1 / 400 + gflop / (290 if precision == "bf16" else 80))
    batches = max(1.0, 60 * rate / batch_size)
    return int(batch_size * 2 ** int(batches).bit_length() // 2)


def worth_compiling(settings: Settings, rows: int, gflop: float) -> bool:
    """Whether compiling the image encoder is likely to save more time than it takes. gflop: as in `resolve`.

    Guesses, as nothing has been measured on a GPU: 90 seconds for a worker to compile, a tenth of the encoder's time
    saved, at 200 TFLOP/s. In fp8 always on a GPU, where scaling the activations is not worth it otherwise.
    """
    if not device_of(settings).startswith("cuda") or not hardware.has_compiler():
        return False
    return settings.model.precision == "fp8" or COMPILE_GAIN * rows * gflop / 200_000 > COMPILE_S


def _batch_size(shard_size: int | None, preferred: int) -> int:
    """`preferred`, or the largest size below it that divides a shard size that was given."""
    if shard_size is None:
        return preferred
    size = next(size for size in range(min(preferred, shard_size), 0, -1) if shard_size % size == 0)
    if size * 2 < min(preferred, shard_size):
        near = -(-shard_size // preferred) * preferred
        raise SettingError(f"shard_size {shard_size} is no multiple of a good batch size: use {near}")
    return size
