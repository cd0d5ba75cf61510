"""The checks of `clipbatch doctor` in their order, and what the answer of each library means for a run.

This module imports no library that decodes or encodes. It asks them in processes that may die (`doctor.probe_main`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from clipbatch import __version__
from clipbatch.config import hardware, models
from clipbatch.config.auto import cpu_precision, cpu_rate
from clipbatch.tools.doctor import machine
from clipbatch.tools.doctor.machine import Finding
from clipbatch.workers.child import Child

# How long a probe may take. Importing torch from a slow network disk takes long.
PROBE_S = 120.0
# Compute capabilities of GPUs with JPEG engines, according to their data sheets: A100 and A30, H100 and H200, B200,
# B300. Of those with 8.9, L4 and L40 have them.
_WITH_ENGINES = [[8, 0], [9, 0], [10, 0], [10, 3]]
# The first branch of NVIDIA's driver that runs programs built for a CUDA, by its major version, whatever the minor one.
_DRIVERS = {12: "R525", 13: "R580"}
# The last torch for CUDA 12 that comes without naming another index; docs/guides/installing.md has the same line.
_FOR_CUDA_12 = "pip install 'torch<2.11' 'torchvision<0.26'"


class Gpu(TypedDict):
    """A GPU, as torch describes it."""

    name: str
    capability: list[int]  # major and minor
    memory_gib: int
    fp8: bool


class Answer(TypedDict, total=False):
    """The answer of a probe: `error`, or the keys in the docstring of the probe."""

    error: str
    version: str
    cuda: str | None
    driver_cuda: int | None
    gpus: list[Gpu]
    reason: str
    nvimgcodec: str
    nvimgcodec_cuda: int  # 1000 times the major version, like all versions of CUDA
    answer: bool
    engines: int
    where: str


def examine(place: str, model: str, pretrained: str | None) -> Iterator[Finding]:
    """Check everything that a run over `place` with `model` needs. Yields each finding at once.

    place: where the speed of the disk is measured. Raises: InputError for an unknown model.
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
        else Finding(name="JPEG engines", level="ok", text="not checked without a GPU; the CPU decodes")
    )
    yield judge_precision(gpus)
    yield machine.cores()
    yield machine.compiler()
    yield machine.shared_memory()
    yield machine.disk(place, None if gpus else cpu_rate(models.gflop(model), cpu_precision(), hardware.cores()))
    yield judge_weights(ask("weights_are", model, pretrained or ""), model, pretrained)


def ask(probe: str, *arguments: str) -> Answer:
    """The answer of a probe; {"error": ...} also if its process dies or does not end."""
    with Child("clipbatch.tools.doctor.probe_main", probe, *arguments) as child:
        try:
            answer: Answer = child.receive(PROBE_S)
        except TimeoutError as error:
            return {"error": str(error)}
        except EOFError:
            return {"error": ": ".join([f"the process was ended {child.how_it_ended()}", *child.log()[-1:]])}
    return answer


def judge_torch(answer: Answer) -> Iterator[Finding]:
    """The findings on torch, on whether its CUDA works with the driver, and on each GPU."""
    if "error" in answer:
        remedy = "install clipbatch's pinned versions again: pip install -c constraints.txt ."
        if "no kernel image" in answer["error"]:
            remedy = (
                "this torch has no code for this GPU: torch for CUDA 13 needs compute capability 7.5 or later; for 7.0 "
                f"(V100) {_FOR_CUDA_12}"
            )
        yield Finding(name="torch", level="failure", text=answer["error"], remedy=remedy)
        return
    text = f"clipbatch {__version__}, torch {answer['version']}, built for CUDA {answer['cuda'] or '(none)'}"
    driver = answer["driver_cuda"]
    if driver:
        text += f", driver supports {driver // 1000}.{driver % 1000 // 10}"
    remedy = ""
    if hardware.has_gpu() and answer["cuda"] is None:
        remedy = "install the torch that is built for CUDA (pip install torch, not the +cpu wheel)"
    elif hardware.has_gpu() and driver and driver // 1000 < (major := int((answer["cuda"] or "0").partition(".")[0])):
        branch = f" ({_DRIVERS[major]} or later)" if major in _DRIVERS else ""
        remedy = f"install a driver that supports CUDA {major}{branch}"
        if driver // 1000 == 12:
            remedy += f", or a torch built for CUDA 12: {_FOR_CUDA_12}"
    elif hardware.has_gpu() and not answer["gpus"]:
        reason = answer.get("reason", "no reason given")
        remedy = f"torch finds no GPU ({reason}): check nvidia-smi and reload the driver"
    yield Finding(name="torch", level="failure" if remedy else "ok", text=text, remedy=remedy)
    for number, gpu in enumerate(answer["gpus"]):
        capability = ".".join(map(str, gpu["capability"]))
        text = f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {capability}"
        yield Finding(name=f"GPU {number}", level="ok", text=text)


def judge_dali(answer: Answer, driver_cuda: int | None) -> Finding:
    if "error" in answer:
        fits = "" if driver_cuda is None else f" (nvidia-dali-cuda{driver_cuda // 1000}0 is built for this driver)"
        return Finding(
            name="DALI",
            level="failure" if driver_cuda else "warning",  # without a GPU, torchvision decodes
            text=f"does not decode an intact JPEG: {answer['error']}",
            remedy=f"install it again{fits}, or run with --decoder torchvision",
        )
    cuda = f"{answer['nvimgcodec_cuda'] // 1000}.{answer['nvimgcodec_cuda'] % 1000 // 10}"
    text = f"{answer['version']} with nvImageCodec {answer['nvimgcodec']}, built for CUDA {cuda}, decodes"
    return Finding(name="DALI", level="ok", text=text)


def judge_engines(answer: Answer, gpu: Gpu) -> Finding:
    if answer.get("answer"):
        return Finding(name="JPEG engines", level="ok", text=f"{answer.get('engines') or ''} decode".strip())
    if gpu["capability"] not in _WITH_ENGINES and not gpu["name"].startswith("NVIDIA L4"):
        return Finding(name="JPEG engines", level="ok", text=f"{gpu['name']} has none; its CUDA cores decode")
    return Finding(
        name="JPEG engines",
        level="warning",
        text=f"do not answer ({answer.get('error') or answer.get('reason') or 'nothing was decoded'}); CUDA cores "
        "decode, slower",
        remedy=f"{hardware.VIDEO_REMEDY}; on a GPU that is split (MIG), use an instance with a JPEG engine",
    )


def judge_precision(gpus: list[Gpu]) -> Finding:
    if gpus:
        kinds = ["fp16", "bf16", *(["fp8"] if all(gpu["fp8"] for gpu in gpus) else [])]
        return Finding(name="precision", level="ok", text=f"GPU: {', '.join(kinds)}; auto is fp16")
    if hardware.has_fast_bf16():
        return Finding(name="precision", level="ok", text="CPU: bf16 in hardware; auto is bf16")
    fp32, bf16 = (cpu_rate(models.gflop("ViT-B-32"), precision, 1) for precision in ("fp32", "bf16"))
    return Finding(
        name="precision",
        level="warning",
        text=f"CPU: no bf16 in hardware; auto is fp32. Expect about {fp32:.2g} images/s a core with ViT-B-32, where "
        f"bf16 does {bf16:.2g} (measured on 2 cores of an AMD EPYC)",
        remedy="for more: a GPU, a CPU with AVX-512 BF16 or AMX (lscpu), or a cheaper model (clipbatch models)",
    )


def judge_weights(answer: Answer, model: str, pretrained: str | None) -> Finding:
    name = f"{model} {pretrained or ''}".strip()
    if "error" in answer:
        return Finding(name="weights", level="failure", text=answer["error"], remedy="check --model and --pretrained")
    places = {"file": "in a file here", "cached": "cached here", "reachable": "not here; the first run downloads them"}
    if answer["where"] in places:
        return Finding(name="weights", level="ok", text=f"{name}: {places[answer['where']]}")
    return Finding(
        name="weights",
        level="failure",
        text=f"{name}: not cached here, and the hub does not answer",
        remedy="copy the Hugging Face cache from a machine that has them, or give --pretrained FILE; "
        f"--model {models.DEMO} needs no download",
    )
