"""Tries out a library: `python -m clipbatch.tools.doctor.probe_main NAME ARGUMENT...`.

A broken driver or decoder may end the process by a signal. So each probe runs in a process of its own, and a crash
costs only that probe. The process sends one answer; if the library raises an exception, the answer is {"error": ...}.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import sys

from clipbatch.errors import InputError, brief
from clipbatch.tools.doctor.checks import Answer, Gpu
from clipbatch.workers.child import Parent, serve


def torch_sees() -> Answer:
    """torch's `version` and `cuda`, the driver's `driver_cuda`, and the `gpus` or the `reason` why there are none."""
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
    """The CUDA version that the driver supports: 1000 times the major version, and so on (cuDriverGetVersion)."""
    try:
        version = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
        return version.value
    except OSError:
        return None


def dali_decodes(device: str) -> Answer:
    """Decode a sample with DALI on `device`, cpu or cuda. Returns `version`, `nvimgcodec`, `nvimgcodec_cuda`."""
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
        return {"error": "an intact JPEG was not decoded, or came out black"}
    return Answer(
        version=dali.__version__,
        nvimgcodec=nvimgcodec.__version__,
        nvimgcodec_cuda=nvimgcodec.__cuda_version__,
    )


def engines_decode() -> Answer:
    """Decode a sample with the GPU's JPEG engines and nothing else. Returns `answer`: whether that worked; `engines`:
    how many there are; and if there are none, the `reason`."""
    from nvidia import nvimgcodec

    from clipbatch.stages.decode.engines import count_engines

    backend = nvimgcodec.Backend(nvimgcodec.BackendKind.HW_GPU_ONLY)
    decoder = nvimgcodec.Decoder(device_id=0, backends=[backend])
    image = decoder.decode(_sample())
    count, why = count_engines()
    return {"answer": image is not None, "engines": count, "reason": why}


def weights_are(model: str, pretrained: str) -> Answer:
    """Returns `where` the weights of a model are. Downloads nothing. pretrained: may be empty."""
    from clipbatch.config import ModelSettings
    from clipbatch.stages.encode.model import find_weights

    return {"where": find_weights(ModelSettings(model=model, pretrained=pretrained or None))}


def _sample() -> bytes:
    return (importlib.resources.files("clipbatch") / "data" / "demo" / "images" / "dog-1.jpg").read_bytes()


def main() -> None:
    probes = {probe.__name__: probe for probe in (torch_sees, dali_decodes, engines_decode, weights_are)}

    def run_probe(parent: Parent) -> None:
        try:
            answer: Answer = probes[sys.argv[1]](*sys.argv[2:])
        except InputError as error:
            answer = {"error": str(error)}
        except Exception as error:  # a broken installation raises all kinds of exceptions
            answer = {"error": brief(error)}
        parent.send(answer)

    serve(run_probe)


if __name__ == "__main__":
    main()
