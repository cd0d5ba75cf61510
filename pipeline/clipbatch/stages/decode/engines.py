"""The JPEG engines of a GPU: how many there are, and the share of JPEGs that they should get.

The best share depends on the number of engines, on the cores that feed CUDA's decoder, and on the size of the images:
measurements of others put it anywhere between 0.3 and 0.9. So it is measured once per kind of machine and image, and
kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

from clipbatch.config import hardware
from clipbatch.config.nesting import parse_json
from clipbatch.errors import InputError
from clipbatch.stages.encode.text import cache_folder
from clipbatch.storage.atomic import publish

# The share of JPEGs for the JPEG engines, if it has not been measured: DALI's own default.
ENGINE_SHARE = 0.65
_DECODING_LIBRARY = "libnvcuvid.so.1"
_STEP = 0.1
# The upper bounds of the classes of image size, in megapixels; photographs of a class behave alike.
_MEGAPIXELS = (0.3, 1.0, 4.0, 16.0)
# Width and height of the images that stand for each class.
SIDES = ((448, 336), (960, 720), (1920, 1440), (3264, 2448), (5440, 4080))


def goes_to_engines(row_id: int, share: float) -> bool:
    """Whether the GPU's JPEG engines decode the image: it belongs to the `share` of rows.

    Multiples of the golden ratio modulo 1 (Knuth, The Art of Computer Programming, volume 3, 6.4) spread these rows
    evenly, and without any relation to those that `goes_to_cpu` takes.
    """
    return (row_id * 2654435769) % 2**32 < share * 2**32


def count_engines() -> tuple[int, str]:
    """How many JPEG engines this process can use on the GPU, and if there are none, why.

    nvImageCodec leaves the engines out without a word if the driver's decoding library is missing, as it is in
    containers that were started without the capability `video`. Call it only where CUDA works.
    """
    try:
        ctypes.CDLL(_DECODING_LIBRARY)
    except OSError:
        return 0, f"the driver's library {_DECODING_LIBRARY} is not here: {hardware.VIDEO_REMEDY}"
    try:
        nvjpeg = ctypes.CDLL(_nvjpeg())
        handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_uint(0)
        if nvjpeg.nvjpegCreateSimple(ctypes.byref(handle)):
            return 0, "nvJPEG does not start on this GPU"
        nvjpeg.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
        nvjpeg.nvjpegDestroy(handle)
    except (OSError, AttributeError) as error:
        return 0, f"nvJPEG cannot be asked for them: {error}"
    return engines.value, "" if engines.value else "this GPU has none"


def _nvjpeg() -> str:
    """The library that comes with nvImageCodec's wheels, or else the system's."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("*/lib/libnvjpeg.so.*")):
            return str(path)
    return "libnvjpeg.so.12"


def size_class(pixels: int) -> int:
    """The class of images of so many pixels, for `calibrated_share`."""
    return sum(pixels / 1e6 > bound for bound in _MEGAPIXELS)


def best_share(rate: Callable[[float], float]) -> float:
    """The share for the engines at which `rate` (images/s) is highest, of those tried; a multiple of 0.01.

    If engines and CUDA do not slow each other down, both finish together where each gets work in proportion to its
    rate alone. That share and its neighbours are tried.
    """
    engines, cuda = rate(1.0), rate(0.0)
    rates = {1.0: engines, 0.0: cuda}
    middle = engines / (engines + cuda)
    for share in (middle - _STEP, middle, middle + _STEP):
        rounded = round(min(1.0, max(0.0, share)), 2)
        if rounded not in rates:
            rates[rounded] = rate(rounded)
    return max(rates, key=lambda share: rates[share])


def calibrated_share(rate: Callable[[float], float], *, gpu: str, driver: str, cores: int, size: int) -> float:
    """`best_share`, measured once for a GPU model, driver version, number of cores and class of image size.

    Later calls get the value from the user's cache, so that runs with equal settings get equal shares.
    """
    key = json.dumps([gpu, driver, cores, size])
    shares = _cached()
    if key not in shares:
        shares[key] = best_share(rate)
        with contextlib.suppress(OSError, InputError):  # the next run measures again
            os.makedirs(_cache_file().parent, exist_ok=True)
            with publish(_cache_file()) as file:
                file.write(json.dumps(shares, indent=2).encode())
    return shares[key]


def _cache_file() -> Path:
    return cache_folder("engine-shares.json")


def _cached() -> dict[str, float]:
    try:
        shares = parse_json(_cache_file().read_bytes())
        return {key: float(share) for key, share in shares.items() if 0 <= float(share) <= 1}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
