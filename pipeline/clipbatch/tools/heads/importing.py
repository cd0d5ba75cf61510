"""Makes heads of what other tools have saved.

    .npz                           `coef` and `intercept` of a linear model of scikit-learn, and `classes` if wanted
    .pth .pt .bin .ckpt .safetensors    the state_dict of linear layers, one after the other: LAION's aesthetic
                                   predictors (a single layer, or five without an activation), and others

Nothing here runs what a pickle may hold.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbatch.config import head_files
from clipbatch.config.heads import HeadFile
from clipbatch.errors import InputError, brief, reading_failed
from clipbatch.rundir import features
from clipbatch.rundir.layout import RunDir
from clipbatch.tools.heads import write
from clipbatch.tools.heads.write import ModelOfHead

Layers = list[tuple[NDArray[Any], NDArray[Any]]]
_OF_TORCH = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How a file is to be imported."""

    # The model that the head was trained for: by name, or that of a run.
    model: str | None = None
    pretrained: str | None = None
    run: str | None = None
    # None: the classes in an .npz file; or else numbers from 0.
    outputs: Sequence[str] | None = None
    # None: classes for an .npz file, values for others.
    result: str | None = None
    activation: str = "none"
    unit_length: bool = True

    def __post_init__(self) -> None:
        if (self.model is None) == (self.run is None):
            raise InputError("say which model the head was trained for: --model (and --pretrained), or --run RUN")
        if self.pretrained is not None and self.model is None:
            raise InputError("--pretrained is for --model: add that, or leave --pretrained out")


def import_head(path: Path, out: Path, request: Request) -> HeadFile:
    """Make a head of the file `path`, and write it to `out`.

    Raises: InputError if the file has another layout, holds more than numbers, or the head cannot be written.
    """
    write.check_out(out)
    if path.suffix not in (".npz", *_OF_TORCH, head_files.SUFFIX):
        raise InputError(
            f"{path}: give the .npz or the state_dict (.pth, .pt, .bin, .ckpt, .safetensors) of a head; a pickle of "
            "scikit-learn is not read: numpy.savez('head.npz', coef=model.coef_, intercept=model.intercept_, "
            "classes=model.classes_.astype(str))"
        )
    result = request.result or ("classes" if path.suffix == ".npz" else "values")
    names: list[str] | None = None
    model: ModelOfHead
    if path.suffix == ".npz":
        layers, names = _linear_model(path, result)
        model = _model(request, None, None)
    elif path.suffix == head_files.SUFFIX:
        try:
            tensors: Mapping[str, NDArray[Any]] = head_files.parse(path.read_bytes())
        except OSError as error:
            raise reading_failed(f"the head {path}", error) from error
        except ValueError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        layers, model = _stack(path, tensors), _model(request, None, None)
    else:
        with tempfile.TemporaryDirectory(prefix="clipbatch-head-") as folder:
            file = Path(folder, "tensors.safetensors")
            model = _model(request, path, file)
            try:
                tensors = head_files.parse(file.read_bytes())
            except ValueError as error:
                raise InputError(f"{path} cannot be used: {error}") from error
        layers = _stack(path, tensors)
    if request.run is not None:
        _check_length(path, layers[0][0].shape[1], RunDir(request.run))
    outputs = list(request.outputs or names or map(str, range(len(layers[-1][1]))))
    fields = {"result": result, "activation": request.activation, "outputs": outputs}
    return write.write(out, layers, model, unit_length=request.unit_length, **fields)


def _model(request: Request, file: Path | None, tensors: Path | None) -> ModelOfHead:
    """The model of `request`. file: is read by torch meanwhile, and its tensors are written to `tensors`."""
    if request.run is not None:
        if file:
            settings = RunDir(request.run).plan().run_settings().model
            write.ask(settings.model, settings.pretrained, digest=False, file=file, tensors=tensors)
        return write.model_of_run(RunDir(request.run))
    assert request.model is not None
    model, pretrained = write.named_model(request.model, request.pretrained)
    known = write.ask(model, pretrained, digest=True, file=file, tensors=tensors)
    return ModelOfHead(model=model, pretrained=pretrained, **known)


def _check_length(path: Path, length: int, run: RunDir) -> None:
    """Whether the model of `run` gives embeddings of `length` numbers. Raises: InputError if not."""
    loaded = features.load(run, run.plan())
    if loaded and loaded[0].shape[1] != length:
        raise InputError(
            f"{path} takes embeddings of {length} numbers, and those of {run.path} have {loaded[0].shape[1]}: give a "
            "run of the model that the head was trained for"
        )


def _linear_model(path: Path, result: str) -> tuple[Layers, list[str] | None]:
    """The layer in an .npz file, and the names of its classes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.removesuffix("_"): file[name] for name in file.files}
    except OSError as error:
        raise reading_failed(f"the head {path}", error) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read without pickles ({brief(error)}): save numbers and texts alone, as in "
            "numpy.savez('head.npz', coef=model.coef_, intercept=model.intercept_, classes=model.classes_.astype(str))"
        ) from error
    if not {"coef", "intercept"} <= arrays.keys() <= {"coef", "intercept", "classes"}:
        raise InputError(f"{path} has {sorted(arrays)}: it has to have coef and intercept, and may have classes")
    weight, bias = np.atleast_2d(arrays["coef"]), np.atleast_1d(arrays["intercept"])
    for name, array in (("coef", weight), ("intercept", bias)):
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"{path}: {name} holds {array.dtype}, not floating-point numbers")
    if weight.ndim != 2 or bias.ndim != 1 or len(bias) not in (1, len(weight)):
        raise InputError(f"{path}: coef has the shape {weight.shape}, which an intercept of {bias.shape} does not fit")
    bias = np.broadcast_to(bias, (len(weight),))
    if result == "classes" and len(weight) == 1:  # of two classes, the softmax with 0 is the sigmoid
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros(1), bias])
    names = [str(name) for name in arrays["classes"].tolist()] if "classes" in arrays else None
    if names is not None and len(names) != len(weight):
        names = names[1:] if len(weight) == 1 and len(names) == 2 else names  # the output is that of the second class
    return [(weight, bias)], names


def _stack(path: Path, tensors: Mapping[str, NDArray[Any]]) -> Layers:
    """Linear layers, in the order of the numbers in their names."""
    modules: dict[str, dict[str, NDArray[Any]]] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        modules.setdefault(module, {})[kind] = tensor

    def numbers(module: str) -> list[int]:
        return [int(number) for number in re.findall("[0-9]+", module)]

    names = sorted(sorted(modules), key=numbers)
    for before, after in itertools.pairwise(names):
        if not numbers(before) or numbers(before) == numbers(after):
            raise InputError(
                f"{path}: the order of its layers {before!r} and {after!r} cannot be told, since their names have no "
                "numbers, or the same: name the layers layers.0, layers.1, ... in the state_dict"
            )
    layers: Layers = []
    for module in names:
        parts = dict(modules[module])
        weight = parts.pop("weight", np.zeros(0))
        bias = parts.pop("bias", np.zeros(len(weight), np.float32))
        if parts or weight.ndim != 2 or bias.shape != (len(weight),):
            shapes = {kind: tensor.shape for kind, tensor in modules[module].items()}
            raise InputError(
                f"{path}: {module or 'it'} has {shapes}, which is no linear layer: only heads of linear layers, one "
                "after the other, can be imported"
            )
        if layers and weight.shape[1] != len(layers[-1][1]):
            raise InputError(
                f"{path}: {module} takes {weight.shape[1]} numbers, and the layer before it gives "
                f"{len(layers[-1][1])}: only linear layers in the order of their numbers can be imported"
            )
        layers.append((weight, bias))
    if not layers:
        raise InputError(f"{path} holds no tensors: save the state_dict() of the head")
    return layers
