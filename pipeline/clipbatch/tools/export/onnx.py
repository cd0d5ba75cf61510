"""An image tower as an ONNX file, with a JSON file beside it that says how to use it.

    model.onnx          uint8 RGB pixels of the model's size -> embeddings of unit length
    model.onnx.data     the weights, where they are too large for one file
    model.labels.npy    where labels are given: a feature of unit length for each, float32, in their order
    model.json          how images are to be resized, how scores are made, labels, digests

The JSON file comes last, so where it is, the others are whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from clipbatch import __version__
from clipbatch.config import Settings
from clipbatch.config import labels as label_sets
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.runs import resolving
from clipbatch.storage.atomic import file_sha256, write_json
from clipbatch.tools.export.request import Answer, ask, check_free, move_all, staged

SUFFIX = ".onnx"


def export(settings: Settings, out: Path, *, precision: Literal["fp32", "fp16"], batch_size: int | None) -> JsonObject:
    """Write the image tower of the model of `settings` to `out`; returns what the JSON file says.

    settings: the model, and labels if there are any. batch_size: of all batches; None: dynamic.
    Raises: InputError where a setting is refused, a file is there already, or the model cannot be had or exported.
    """
    if out.suffix != SUFFIX:
        raise InputError(f"--out {out}: the name of an ONNX file ends in {SUFFIX}")
    names = {kind: f"{out.stem}{kind}" for kind in (SUFFIX, f"{SUFFIX}.data", ".labels.npy", ".json")}
    check_free(*(out.with_name(name) for name in names.values()))
    settings = resolving.resolve(settings)
    labels = label_sets.load(settings.labels) if settings.labels.labels else None
    with staged(out) as folder:
        text, file = folder / names[".labels.npy"], folder / names[SUFFIX]
        answer = ask(
            settings, labels, text=text if labels else None, onnx=file, precision=precision, batch_size=batch_size
        )
        record = _record(settings, answer, precision, batch_size)
        for name in names.values():
            if (folder / name).exists():
                record["files"][name] = file_sha256(folder / name)
        if labels:
            record["label_features"] = names[".labels.npy"]
            record |= labels.identity()
        write_json(folder / names[".json"], record)
        move_all(folder, out.parent, last=names[".json"])
    return record


def _record(settings: Settings, answer: Answer, precision: str, batch_size: int | None) -> JsonObject:
    """What the JSON file says, without files and labels."""
    facts = answer["facts"]
    return {
        "clipbatch": __version__,
        "model": settings.model.model,
        "pretrained": settings.model.pretrained,
        "weights_sha256": facts["weights_sha256"],
        "files": {},
        "opset": answer["opset"],
        "precision": precision,
        "cosine_to_torch": round(answer["worst_cosine"], 7),
        "input": {
            "name": "pixels",
            "dtype": "uint8",
            "shape": [batch_size, 3, facts["height"], facts["width"]],
            "channels": "RGB",
            "normalised": "inside",
        },
        "output": {"name": "embedding", "dtype": "float32", "shape": [batch_size, answer["embedding"]], "length": 1},
        "preprocess": {
            name: facts[name] for name in ("height", "width", "interpolation", "resize_mode", "fill", "mean", "std")
        },
        "score": answer["score"],
        "logit_scale": facts["logit_scale"],
        "logit_bias": facts["logit_bias"],
    }
