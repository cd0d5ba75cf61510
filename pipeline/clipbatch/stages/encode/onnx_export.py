"""An image tower as an ONNX file: uint8 pixels in, unit-length embeddings out, with the normalisation inside.

torch's exporter writes the file. ONNX Runtime then computes a few images with it, and torch computes the same images in
fp32: a file that disagrees with torch is refused. Knows nothing of decoding, resizing or labels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clipbatch.errors import InputError, brief
from clipbatch.stages.encode.model import DTYPES, Model

OnnxPrecision = Literal["fp32", "fp16"]
INPUT, OUTPUT = "pixels", "embedding"
# Between the file's embeddings and torch's in fp32, by the file's precision.
MIN_COSINE = {"fp32": 0.99999, "fp16": 0.999}
# Images that are compared, where the batch is dynamic.
_COMPARED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """What was written."""

    opset: int
    # Its length.
    embedding: int
    # Between ONNX Runtime's embeddings and torch's in fp32, on a few images.
    worst_cosine: float


class _ImageTower(nn.Module):
    """uint8 `pixels_BCHW`, RGB -> `image_BD`, float32, unit length."""

    scale_C11: Tensor
    bias_C11: Tensor

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        mean_C, std_C = torch.tensor(model.mean), torch.tensor(model.std)
        self.register_buffer("scale_C11", (1 / (255 * std_C)).view(-1, 1, 1))
        self.register_buffer("bias_C11", (-mean_C / std_C).view(-1, 1, 1))
        self._model, self._dtype = model.module, dtype

    def forward(self, pixels: Tensor) -> Tensor:
        normal_BCHW = (pixels.float() * self.scale_C11 + self.bias_C11).to(self._dtype)
        image_BD: Tensor = self._model.encode_image(normal_BCHW)
        return functional.normalize(image_BD.float(), dim=-1)


@torch.inference_mode()
def export_onnx(model: Model, path: Path, *, precision: OnnxPrecision, batch_size: int | None) -> OnnxFile:
    """Write the image tower of `model` to `path`, and beside it `path` with `.data` if it is larger than ONNX allows in
    one file. The tower is in `precision` afterwards.

    model: in fp32 on the CPU. batch_size: of all batches; None: each call may have another one.
    Raises: InputError where a package is missing, the model cannot be exported, or the file computes something else.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ModuleNotFoundError as error:
        raise InputError(f"export onnx needs the package {error.name}: pip install 'clipbatch[export]'") from error
    logging.getLogger(onnxscript.__name__).setLevel(logging.ERROR)  # it warns of what it leaves as it is
    pixels_BCHW = _noise(batch_size or _COMPARED, model.height, model.width)
    expected_BD = _ImageTower(model, torch.float32)(pixels_BCHW)
    model.module.visual.to(dtype=DTYPES[precision])
    tower = _ImageTower(model, DTYPES[precision]).eval()
    shapes = None if batch_size else {INPUT: {0: torch.export.Dim("batch")}}
    try:
        program = torch.onnx.export(
            tower,
            (pixels_BCHW,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program
        program.save(path)
        onnx.checker.check_model(str(path))
        options = onnxruntime.SessionOptions()  # all optimisations end the process with SIGSEGV, of some towers in fp16
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (found_BD,) = session.run([OUTPUT], {INPUT: pixels_BCHW.numpy()})
    except Exception as error:  # whatever the exporter and the runtime make of a model that they do not know
        raise InputError(
            f"the image tower of {model.name} cannot be exported to ONNX: {_reason(error)}; use another model, or "
            "serve this one by clipbatch serve or clipbatch export triton"
        ) from error
    cosine = float(functional.cosine_similarity(torch.from_numpy(np.asarray(found_BD)), expected_BD).min())
    if not cosine >= MIN_COSINE[precision]:
        raise InputError(
            f"the ONNX file of {model.name} in {precision} computes other embeddings than torch does (cosine "
            f"{cosine:.6f}, and at least {MIN_COSINE[precision]} is wanted): use another precision or model"
        )
    opset = next(entry.version for entry in onnx.load(path, load_external_data=False).opset_import if not entry.domain)
    return OnnxFile(opset=opset, embedding=expected_BD.shape[1], worst_cosine=cosine)


def _noise(count: int, height: int, width: int) -> Tensor:
    """Images of coarse coloured squares, the same ones each time: embeddings of fine noise are all alike."""
    generator = torch.Generator().manual_seed(0)
    coarse_BCHW = torch.randint(0, 256, (count, 3, 7, 7), generator=generator).float()
    return functional.interpolate(coarse_BCHW, size=(height, width)).to(torch.uint8)


def _reason(error: BaseException) -> str:
    """What went wrong first: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return brief(error)
