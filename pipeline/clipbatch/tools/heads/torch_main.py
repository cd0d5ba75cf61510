"""The process that knows models and torch's files for heads: `python -m clipbatch.tools.heads.torch_main`.

Takes one line, a JSON object:

    model, pretrained    of which model the facts are asked for
    digest               whether the digest of its weights is asked for too, where these are on this machine
    file, tensors        a file of torch to read, and the safetensors file to write its tensors to; null: none

Sends `quick_gelu` and `weights_sha256`, each null where it is not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clipbatch.config import ModelSettings
from clipbatch.errors import InputError, brief, reading_failed
from clipbatch.stages.encode.model import find_weights, name_and_weights, quick_gelu, weights_of
from clipbatch.storage.atomic import file_sha256
from clipbatch.workers.child import Parent, serve


def main() -> None:
    def answer(parent: Parent) -> None:
        request = next(iter(parent.messages()))
        if request["file"]:
            save_file(_state_dict(Path(request["file"])), request["tensors"])
        settings = ModelSettings(model=request["model"], pretrained=request["pretrained"])
        digest = _weights_digest(settings) if request["digest"] else None
        parent.send({"quick_gelu": quick_gelu(settings), "weights_sha256": digest})

    serve(answer)


def _weights_digest(settings: ModelSettings) -> str | None:
    """Digest of the weights, if they are on this machine. Raises: InputError if the model has no such weights."""
    if find_weights(settings) not in ("file", "cached"):
        return None
    return file_sha256(weights_of(*name_and_weights(settings)))


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file that torch.save has written. Runs nothing of what a pickle may hold."""
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise reading_failed(f"the head {path}", error) from error
    except Exception as error:  # torch raises all kinds of exceptions for files of others
        raise InputError(
            f"{path} holds more than tensors, or is not a file of torch ({brief(error)}): save the state_dict() of the "
            "head alone"
        ) from error
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise InputError(f"{path} does not hold a state_dict: save the state_dict() of the head alone")
    return {str(name): tensor.detach().float().contiguous().clone() for name, tensor in value.items()}


if __name__ == "__main__":
    main()
