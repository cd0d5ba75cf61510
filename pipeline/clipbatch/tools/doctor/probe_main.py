"""One look at a library, in a process that may die: `python -m clipbatch.tools.doctor.probe_main NAME ARGUMENT...`.

Prints one line of JSON at the end, {"error": ...} where the library refuses. A process for each, since what is wrong
with a driver or a decoder may end it by a signal, and then only this look is lost.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import sys

from clipbatch.errors import InputError, brief
from clipbatch.tools.doctor.checks import Answer, Gpu
from clipbatch.workers.child import Parent, serve


def torch_sees() -> Answer:
    """torch's `version` and `cuda`, the driver's `driver_cuda`, and the `gpus`, or the `reason` why there are none."""
    import torch

    answer = Answer(version=torch.__version__, cuda=torch.version.cuda, driver_cuda=_driver_cuda())
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            answer["reason"] = str(error).splitlines()[0]
    answer["gpus"] = [_gpu(number) for number in range(torch.cuda.device_count())]
    return answer


def _gpu(number: int) -> Gpu:
    import torch

    device, facts = f"cuda:{number}", torch.cuda.get_device_properties(number)
    for dtype in (torch.float16, torch.bfloat16):
        ones = torch.ones(64, 64, device=device, dtype=dtype)
        if not bool((ones @ ones == 64).all()):
            raise RuntimeError(f"{device} multiplies {dtype} wrongly")
    capability = [facts.major, facts.minor]
    return Gpu(
        name=facts.name,
        capability=capability,
        memory_gib=round(facts.total_memory / 2**30),
        fp8=capability >= [8, 9],  # Ada and Hopper, the first with FP8 tensor cores
    )


def _driver_cuda() -> int | None:
    """The CUDA version that the driver speaks, 1000 times the major one (cuDriverGetVersion)."""
    try:
        version = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
        return version.value
    except OSError:
        return None


def dali_decodes(device: str) -> Answer:
    """Decode a sample with DALI's graph on `device`, cpu or cuda: `version`, `nvimgcodec`, `nvimgcodec_cuda`."""
    import torch
    from nvidia import dali, nvimgcodec

    from clipbatch.stages.decode.dali import DaliDecoder
    from clipbatch.stages.decode.geometry import Target, geometry_of
    from clipbatch.stages.decode.header import inspect
    from clipbatch.stages.decode.pixels import DecodeJob, blank

    data = bytearray(_sample())
    header = inspect(data)
    assert header
    target = Target(height=64, width=64, resize_mode="shortest", interpolation="bicubic", fill=0)
    decoder = DaliDecoder(
        batch_size=1, interpolation="bicubic", device_id=None if device == "cpu" else 0, threads=1, engines=False
    )
    pixels_BCHW = blank(1, 64, 64, 0, device)
    geometry = geometry_of(header.height, header.width, header.orientation, target)
    failed = decoder.fill(pixels_BCHW, [DecodeJob(slot=0, data=data, geometry=geometry)])
    if failed or not bool(torch.any(pixels_BCHW != 0)):
        return {"error": "a sound JPEG came out empty"}
    return Answer(
        version=dali.__version__,
        nvimgcodec=nvimgcodec.__version__,
        nvimgcodec_cuda=nvimgcodec.__cuda_version__,
    )


def engines_decode() -> Answer:
    """`answer`: whether the GPU's JPEG engines, and nothing else, decode a sample."""
    from nvidia import nvimgcodec

    backend = nvimgcodec.Backend(nvimgcodec.BackendKind.HW_GPU_ONLY)
    decoder = nvimgcodec.Decoder(device_id=0, backends=[backend])
    image = decoder.decode(_sample())
    return {"answer": image is not None}


def weights_are(model: str, pretrained: str) -> Answer:
    """`where` a model's weights would come from; fetches nothing. pretrained: empty for none."""
    from clipbatch.config import ModelSettings
    from clipbatch.stages.encode.model import find_weights

    return {"where": find_weights(ModelSettings(model=model, pretrained=pretrained or None))}


def _sample() -> bytes:
    return (importlib.resources.files("clipbatch") / "data" / "demo" / "images" / "dog-1.jpg").read_bytes()


def main() -> None:
    probes = {probe.__name__: probe for probe in (torch_sees, dali_decodes, engines_decode, weights_are)}

    def look(parent: Parent) -> None:
        try:
            answer: Answer = probes[sys.argv[1]](*sys.argv[2:])
        except InputError as error:
            answer = {"error": str(error)}
        except Exception as error:  # whatever a broken installation makes of it
            answer = {"error": brief(error)}
        parent.send(answer)

    serve(look)


if __name__ == "__main__":
    main()
