"""The model that a head is for, and its two files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from clipbatch.config import head_files, models
from clipbatch.config.head_files import SUFFIX
from clipbatch.config.heads import HeadFile, digest, of_json
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.tools.export.request import check_free, move_all, staged
from clipbatch.workers.child import Child, raise_failure

if TYPE_CHECKING:
    from clipbatch.config.heads import Numbers

# Until the process has imported torch.
_START_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOfHead:
    """The model that a head was trained for."""

    model: str
    pretrained: str | None
    # None: not known.
    quick_gelu: bool | None
    weights_sha256: str | None


def model_of_run(run: RunDir) -> ModelOfHead:
    """The model of a run. Raises: InputError if no worker has loaded it yet."""
    settings, facts = run.plan().run_settings().model, run.model_facts()
    if facts is None:
        raise InputError(f"{run.path} has no embeddings yet: clipbatch run --out {run.path} first")
    known = ask(settings.model, settings.pretrained, digest=False)
    return ModelOfHead(
        model=settings.model,
        pretrained=settings.pretrained,
        quick_gelu=known["quick_gelu"],
        weights_sha256=facts["weights_sha256"],
    )


def ask(
    model: str, pretrained: str | None, *, digest: bool, file: Path | None = None, tensors: Path | None = None
) -> dict[str, Any]:
    """What `torch_main` answers. Raises: InputError as it does."""
    with Child("clipbatch.tools.heads.torch_main") as child:
        child.send(
            {
                "model": model,
                "pretrained": pretrained,
                "digest": digest,
                "file": str(file) if file else None,
                "tensors": str(tensors) if tensors else None,
            }
        )
        try:
            answer: dict[str, Any] = child.receive(_START_S)
        except EOFError as error:
            log = "\n".join(child.log())
            raise InputError(f"the head could not be made: the process that reads it ended\n{log}") from error
    raise_failure(answer)
    return answer


def named_model(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """A model's name and weights as a run has them. Raises: InputError if there is no such model."""
    model = models.canonical(model)
    pretrained = pretrained or models.default_weights(model)
    models.check_weights(pretrained)
    if pretrained and os.path.isfile(pretrained):
        pretrained = os.path.abspath(pretrained)
    return model, pretrained


def check_out(out: Path) -> None:
    """Raises: InputError if a head cannot be written to `out`."""
    if out.suffix != SUFFIX:
        raise InputError(f"--out {out}: the name of a head ends in {SUFFIX}")
    check_free(out, out.with_suffix(".toml"))


def write(out: Path, layers: list[tuple[NDArray[Any], NDArray[Any]]], of: ModelOfHead, **fields: Any) -> HeadFile:
    """Write a head to `out`, with its TOML file beside it. fields: the others of `Head`, by name.

    Raises: InputError if the layers or the fields cannot be used, or `out` cannot be written; then there is neither.
    """
    check_out(out)
    numbers: Numbers = tuple((weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in layers)
    sizes = [numbers[0][0].shape[1], *(len(bias) for _, bias in numbers)]
    values = {"name": "head", "layers": sizes, "sha256": digest(numbers), **fields}
    values |= {"model": of.model, "pretrained": of.pretrained, "quick_gelu": of.quick_gelu}
    values |= {"weights_sha256": of.weights_sha256}
    try:
        file = HeadFile(head=of_json(values), numbers=numbers)
        content = safetensors.numpy.save(head_files.tensors_of(file))
        head_files.layers_of(sizes, head_files.parse(content))
    except ValueError as error:
        raise InputError(f"this cannot be a head: {error}") from error
    with staged(out) as folder:
        (folder / out.name).write_bytes(content)
        (folder / out.with_suffix(".toml").name).write_text(head_files.toml_text(file.head), encoding="utf-8")
        move_all(folder, out.parent, last=out.with_suffix(".toml").name)
    return file
