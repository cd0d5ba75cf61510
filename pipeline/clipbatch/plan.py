"""Freeze the input into a run directory: resolve `auto` settings, number the rows, cut shards, fingerprint.

Knows nothing of what images hold. A run directory appears whole (`begin`): the manifest is written aside and renamed
in, and `run.json` comes last, so a killed planner leaves nothing that counts as a run.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipbatch import __version__, begin, catalog, hardware, interrupts
from clipbatch.atomic import temp_name, writing_failed
from clipbatch.checks import SettingError
from clipbatch.config import ANEW, Settings
from clipbatch.duplicates import Duplicates
from clipbatch.labels import LabelSet
from clipbatch.manifest import ManifestWriter
from clipbatch.places import StorePath
from clipbatch.rundir import Plan, RunDir

_SUFFIXES = 20
COMPILE_S, COMPILE_GAIN = 90.0, 0.1
MANIFEST_ROWS = 2**20
ROW_GROUP_ROWS = 2**14
NOT_IDENTITY = (*ANEW, "labels", "template", "root")
"""Settings that are no part of a run's identity: they decide no cell of a healthy image's row, or what they lead to is
a part itself."""

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "nvidia-dali-cuda120", "pillow", "pyarrow", "numpy")


def resolve(settings: Settings, gflop: float, frozen: Mapping[str, Any] | None = None) -> Settings:
    """`settings` with every `auto` replaced: as the run directory has it, else as this machine suggests.

    gflop: cost of one image in the image encoder, 10**9 multiply and add operations.
    """
    frozen = frozen or {}
    gpu = device_of(settings).startswith("cuda")

    def chosen(name: str, given: Any, otherwise: Any) -> Any:
        return frozen.get(name, otherwise) if given in (None, "auto") else given

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


def identity(settings: Settings, labels: LabelSet, inputs: list[str]) -> dict[str, Any]:
    """The fields that make two runs the same run. `inputs`: the listers' identities."""
    fields = {name: value for name, value in settings.flat().items() if name not in NOT_IDENTITY}
    return fields | {"inputs": inputs} | labels.identity()


def freeze(
    run: RunDir,
    settings: Settings,
    labels: LabelSet,
    inputs: list[str],
    rows: Iterable[pa.RecordBatch],
    passed_over: Callable[[], Counter[str]],
    *,
    replace: bool = False,
) -> Plan:
    """Write the manifest and `run.json` of a new run, and return the plan that stands: another's, if it was first.

    rows: the listing, with the same columns in every batch. passed_over: asked when the listing has ended. replace:
    throw away the run that is there.
    Raises: InputError where the folder cannot be written or the listing refuses its input; nothing is left behind.
    OtherRunError where somebody else was first, with other settings.
    """
    assert settings.shard_size
    assert settings.batch_size
    if settings.shard_size % settings.batch_size:
        raise SettingError(f"shard_size {settings.shard_size} is not a multiple of batch_size {settings.batch_size}")
    made = begin.check_place(run)
    per_file = settings.shard_size * max(1, MANIFEST_ROWS // settings.shard_size)
    row_group = settings.shard_size * max(1, ROW_GROUP_ROWS // settings.shard_size)
    staged = Path(tempfile.mkdtemp()) if isinstance(run.manifest, StorePath) else temp_name(run.manifest)
    try:
        shutil.rmtree(staged, ignore_errors=True)  # of a killed planner that had the same pid
        staged.mkdir()
        duplicates, writer = Duplicates(), ManifestWriter(staged, per_file, row_group)
        with writer, ThreadPoolExecutor(1, thread_name_prefix="duplicates") as aside:
            for batch in rows:
                interrupts.check()
                added = aside.submit(duplicates.add, batch["uri"])  # neither needs the interpreter for long
                writer.write(batch)
                added.result()
        if settings.model.compile == "auto":
            gains = worth_compiling(settings, writer.rows, catalog.gflop(settings.model.model))
            settings = settings.replace(compile="on" if gains else "off")
        plan = Plan(
            rows=writer.rows,
            identity=identity(settings, labels, inputs),
            settings=settings.flat(),
            manifest_rows=per_file,
            manifest_sha256=writer.digests,
            duplicates=duplicates.count(),
            passed_over=_most_frequent(passed_over()),
            versions=versions(),
        )
        standing = begin.begin(run, plan, staged, replace=replace)
    except OSError as error:
        raise writing_failed(run.path, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if made and isinstance(run.path, Path):
            with contextlib.suppress(OSError):  # where nothing was written, as the listing was refused
                run.path.rmdir()
    run.check_same(standing, plan.identity)
    return standing


@functools.cache
def versions() -> dict[str, str]:
    """Versions of clipbatch, Python and what decides pixels and scores."""
    found = {"clipbatch": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _most_frequent(total: Counter[str]) -> dict[str, int]:
    """By suffix; and what the listing has to say beside it, in parentheses, which a suffix never has."""
    notes = Counter({key: count for key, count in total.items() if key.startswith("(")})
    suffixes = total - notes
    named = {suffix or "(no suffix)": count for suffix, count in suffixes.most_common(_SUFFIXES)}
    rest = sum(suffixes.values()) - sum(named.values())
    return named | ({"(others)": rest} if rest else {}) | dict(notes.most_common(_SUFFIXES))
