"""The looks of `clipbatch doctor`, one after the other, and what each one's answer means for a run. Imports no library
that decodes or encodes: what these say is asked in processes that may die (`doctor.probes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from clipbatch import __version__
from clipbatch.config import hardware, models
from clipbatch.tools.doctor import machine
from clipbatch.tools.doctor.machine import Finding
from clipbatch.workers.child import Child

# Within which a look at a library has answered; importing torch from a cold network disk takes long.
PROBE_S = 120.0
# Compute capabilities of GPUs that have JPEG engines, by their data sheets: A100 and A30, H100 and H200, B200, B300; of
# 8.9 the L4 and L40 have them.
_WITH_ENGINES = [[8, 0], [9, 0], [10, 0], [10, 3]]
# The first branch of NVIDIA's driver that runs programs built for a CUDA, by its major version, whatever the minor one.
_DRIVERS = {12: "R525", 13: "R580"}
# The last torch for CUDA 12 that comes without naming another index; docs/guides/installing.md has the same line.
_FOR_CUDA_12 = "pip install 'torch<2.11' 'torchvision<0.26'"
_CONTAINER = "in a container, start it with NVIDIA_DRIVER_CAPABILITIES=compute,utility,video (or all)"


class Gpu(TypedDict):
    """A GPU as torch sees it."""

    name: str
    capability: list[int]  # major and minor
    memory_gib: int
    fp8: bool


class Answer(TypedDict, total=False):
    """What a probe answers: `error`, or the keys that its own docstring names."""

    error: str
    version: str
    cuda: str | None
    driver_cuda: int | None
    gpus: list[Gpu]
    reason: str
    nvimgcodec: str
    nvimgcodec_cuda: int  # 1000 times the major version, as all of CUDA's are
    answer: bool
    where: str


def examine(place: str, model: str, pretrained: str | None) -> Iterator[Finding]:
    """Look at everything that a run over `place` with `model` would need; findings come as they are made.

    place: what the disk's rate is measured on. Raises: InputError for a model that there is not.
    """
    model = models.canonical(model)
    pretrained = pretrained or models.default_weights(model)
    yield machine.driver()
    torch = ask("torch_sees")
    yield from judge_torch(torch)
    gpus = torch.get("gpus", [])
    yield judge_dali(ask("dali_decodes", "cuda" if gpus else "cpu"), torch.get("driver_cuda"))
    yield (
        judge_engines(ask("engines_decode"), gpus[0])
        if gpus
        else Finding(name="JPEG engines", level="ok", text="none to be asked without a GPU; the CPU decodes")
    )
    yield judge_precision(gpus)
    yield machine.cores()
    yield machine.compiler()
    yield machine.shared_memory()
    yield machine.disk(place)
    yield judge_weights(ask("weights_are", model, pretrained or ""), model, pretrained)


def ask(probe: str, *arguments: str) -> Answer:
    """The answer of a probe; {"error": ...} also where its process died or did not end."""
    with Child("clipbatch.tools.doctor.probe_main", probe, *arguments) as child:
        try:
            answer: Answer = child.receive(PROBE_S)
        except TimeoutError as error:
            return {"error": str(error)}
        except EOFError:
            return {"error": ": ".join([f"the process was ended {child.how_it_ended()}", *child.log()[-1:]])}
    return answer


def judge_torch(found: Answer) -> Iterator[Finding]:
    """torch itself, and whether it and the driver speak the same CUDA."""
    if "error" in found:
        remedy = "install clipbatch's pinned versions anew: pip install -c constraints.txt ."
        if "no kernel image" in found["error"]:
            remedy = (
                "this torch has no code for this GPU: torch for CUDA 13 needs compute capability 7.5 or later; for 7.0 "
                f"(V100) {_FOR_CUDA_12}"
            )
        yield Finding(name="torch", level="failure", text=found["error"], remedy=remedy)
        return
    text = f"clipbatch {__version__}, torch {found['version']}, built for CUDA {found['cuda'] or '(none)'}"
    driver = found["driver_cuda"]
    if driver:
        text += f", driver speaks {driver // 1000}.{driver % 1000 // 10}"
    wrong = None
    if hardware.has_gpu() and found["cuda"] is None:
        wrong = "install the torch that is built for CUDA (pip install torch, not the +cpu wheel)"
    elif hardware.has_gpu() and driver and driver // 1000 < (major := int((found["cuda"] or "0").partition(".")[0])):
        wrong = f"install a driver that speaks CUDA {major} ({_DRIVERS.get(major, 'see its release notes')} or later)"
        if driver // 1000 == 12:
            wrong += f", or a torch built for CUDA 12: {_FOR_CUDA_12}"
    elif hardware.has_gpu() and not found["gpus"]:
        wrong = f"torch finds no GPU ({found.get('reason', 'no reason given')}): check nvidia-smi and reload the driver"
    yield Finding(name="torch", level="failure" if wrong else "ok", text=text, remedy=wrong or "")
    for number, gpu in enumerate(found["gpus"]):
        capability = ".".join(map(str, gpu["capability"]))
        text = f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {capability}"
        yield Finding(name=f"GPU {number}", level="ok", text=text)


def judge_dali(found: Answer, driver_cuda: int | None) -> Finding:
    if "error" in found:
        fits = "" if driver_cuda is None else f" (nvidia-dali-cuda{driver_cuda // 1000}0 is built for this driver)"
        return Finding(
            name="DALI",
            level="failure" if driver_cuda else "warning",  # without a GPU, torchvision decodes
            text=f"does not decode a sound JPEG: {found['error']}",
            remedy=f"install it anew{fits}, or run with --decoder torchvision",
        )
    cuda = f"{found['nvimgcodec_cuda'] // 1000}.{found['nvimgcodec_cuda'] % 1000 // 10}"
    text = f"{found['version']} with nvImageCodec {found['nvimgcodec']}, built for CUDA {cuda}, decodes"
    return Finding(name="DALI", level="ok", text=text)


def judge_engines(found: Answer, gpu: Gpu) -> Finding:
    if found.get("answer"):
        return Finding(name="JPEG engines", level="ok", text="decode")
    if gpu["capability"] not in _WITH_ENGINES and not gpu["name"].startswith("NVIDIA L4"):
        return Finding(name="JPEG engines", level="ok", text=f"none known of {gpu['name']}; its CUDA cores decode")
    return Finding(
        name="JPEG engines",
        level="warning",
        text=f"do not answer ({found.get('error', 'nothing was decoded')}); CUDA cores decode, slower",
        remedy=f"{_CONTAINER}; on a GPU that is split (MIG), take an instance with a JPEG engine",
    )


def judge_precision(gpus: list[Gpu]) -> Finding:
    if gpus:
        kinds = ["fp16", "bf16", *(["fp8"] if all(gpu["fp8"] for gpu in gpus) else [])]
        return Finding(name="precision", level="ok", text=f"GPU: {', '.join(kinds)}; auto takes fp16")
    if hardware.has_fast_bf16():
        return Finding(name="precision", level="ok", text="CPU: bf16 in hardware; auto takes bf16")
    return Finding(name="precision", level="ok", text="CPU: no bf16 in hardware; auto takes fp32")


def judge_weights(found: Answer, model: str, pretrained: str | None) -> Finding:
    what = f"{model} {pretrained or ''}".strip()
    if "error" in found:
        return Finding(name="weights", level="failure", text=found["error"], remedy="check --model and --pretrained")
    said = {"file": "in a file here", "cached": "cached here", "reachable": "not here; fetched by the first run"}
    if found["where"] in said:
        return Finding(name="weights", level="ok", text=f"{what}: {said[found['where']]}")
    return Finding(
        name="weights",
        level="failure",
        text=f"{what}: neither cached here nor reachable",
        remedy="copy the Hugging Face cache from a machine that has them, or give --pretrained FILE; "
        f"--model {models.DEMO} needs no download",
    )
