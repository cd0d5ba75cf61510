"""The encoder as a TensorRT engine beside eager torch, a CUDA graph and compiled code: a section of `gpu_check.py`."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from clipbatch.config import from_flat
from clipbatch.stages.encode import Encode, load
from clipbatch.stages.encode.onnx_export import INPUT, OUTPUT, export_onnx
from clipbatch.types import Decoded, ItemBatch, PixelBatch
from contestants import random_model
from gpu_sections import Scale, Tell, median_s

_PACKAGES = ("tensorrt", "onnx", "onnxruntime", "onnxscript")


def tensorrt(scale: Scale, tell: Tell, name: str) -> None:
    """The encoder as a TensorRT engine (fp16, fixed batch), eager, as a CUDA graph and compiled, on the same pixels.

    TensorRT becomes an option of clipbatch only where it beats compiled code by more than 10%. Written for the API of
    TensorRT 10.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if scale.device == "cpu" or missing:
        reason = "it needs a GPU" if scale.device == "cpu" else f"no package {', '.join(missing)}"
        tell("outcome", f"not measured: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="clipbatch-gpu-") as scratch:
        settings = from_flat(random_model(name, Path(scratch))).model
        path = Path(scratch, "model.onnx")
        tower = load(settings)
        embedding = export_onnx(tower, path, precision="fp16", batch_size=None).embedding
        shape = (scale.batch, 3, tower.height, tower.width)
        pixels_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=scale.device)
        begun = time.perf_counter()
        engine = _engine(path, shape)
        tell("TensorRT build s", time.perf_counter() - begun)
        context, image_BD = engine.create_execution_context(), torch.empty(scale.batch, embedding, device=scale.device)
        context.set_input_shape(INPUT, shape)
        context.set_tensor_address(INPUT, pixels_BCHW.data_ptr())
        context.set_tensor_address(OUTPUT, image_BD.data_ptr())
        stream = torch.cuda.Stream(scale.device)
        whole = tuple(Decoded(width=1, height=1, decoder="dali") for _ in range(scale.batch))
        source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
        batch = PixelBatch(source=source, outcomes=whole, pixels_BCHW=pixels_BCHW)
        ours = {"precision": "fp16", "device": scale.device, "batch_size": scale.batch}
        graph = Encode(load(settings), **ours)
        begun = time.perf_counter()
        code = Encode(load(settings), compiles=True, **ours)
        tell("compile s", time.perf_counter() - begun)
        ways: dict[str, Callable[[], object]] = {
            "eager": lambda: graph.embed(pixels_BCHW),
            "graph": lambda: graph(batch),
            "compiled": lambda: code(batch),
            "TensorRT": lambda: context.execute_async_v3(stream.cuda_stream),
        }
        rates = {way: scale.batch / median_s(work, scale.device) for way, work in ways.items()}
        for way, images_per_s in rates.items():
            tell(f"{way} images/s", images_per_s)
        tell("TensorRT / compiled", rates["TensorRT"] / rates["compiled"])
        cosine_B = torch.cosine_similarity(image_BD, graph.embed(pixels_BCHW))
        tell("TensorRT cosine to eager, worst", float(cosine_B.min()))


def _engine(path: Path, shape: tuple[int, ...]) -> Any:
    """A TensorRT engine of an ONNX file, for batches of `shape` alone."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError(f"TensorRT does not read the ONNX file: {parser.get_error(0).desc()}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape(INPUT, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT cannot build an engine of the ONNX file")
    return trt.Runtime(logger).deserialize_cuda_engine(plan)
