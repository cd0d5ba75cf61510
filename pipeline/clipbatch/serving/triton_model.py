"""What a model of NVIDIA Triton does with requests: batches of encoded images in, the rows of a run out.

`clipbatch export triton` writes the model repository, whose `model.py` calls this; Triton's Python backend runs it, one
process for each instance. Triton makes the batches (dynamic batching). The stages are those of a run. An image gets its
answer whatever is wrong with it; a request fails only where the whole batch fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.config import from_flat
from clipbatch.config.labels import LabelSet
from clipbatch.errors import DamagedError, InputError
from clipbatch.rundir import features
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.serving.images import to_batches
from clipbatch.serving.labeller import Labeller

INPUT = "image"
# Files of a version folder: settings, labels and the model's facts; the labels' features.
RECORD, TEXT = "clipbatch.json", "text.npy"


class TritonModel:
    """A loaded model that answers requests of Triton's Python backend, a batch at a time."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        """arguments: as Triton gives them to `initialize`.

        Raises: InputError where the model cannot be had, or is not the exported one; DamagedError where a file of the
        version folder is damaged.
        """
        folder = Path(arguments["model_repository"], arguments["model_version"])
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        is_gpu = arguments["model_instance_kind"] == "GPU"
        device = f"cuda:{arguments['model_instance_device_id']}" if is_gpu else "cpu"
        settings = from_flat({**record["settings"], "device": device})
        labels = LabelSet.from_identity(record["labels"])
        try:
            text_LD = features.parse((folder / TEXT).read_bytes(), len(labels.names), record["text_sha256"])
        except DamagedRecordError as error:
            raise DamagedError(f"{folder / TEXT} is damaged: {error}; export the model anew") from error
        self._labeller = Labeller(settings, labels, text_LD)
        self._max_bytes = settings.read.max_bytes
        model = self._labeller.model
        if model.model.weights_sha256 != record["weights_sha256"]:
            raise InputError(
                f"the weights {model.model.weights} are not those that the model was exported with (sha256 "
                f"{model.model.weights_sha256[:12]}... here, {record['weights_sha256'][:12]}... there): put those back "
                "where they were, or export the model anew"
            )
        self._outputs: dict[str, str] = record["outputs"]
        self._threads = 1 if is_gpu else max(model.decode.threads, model.encode.threads)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="label")

    @staticmethod
    def check_backend() -> None:
        """Raises: InputError where the Python backend hands over wrong arrays, since it was built for another numpy."""
        import triton_python_backend_utils as backend

        given = backend.Tensor("probe", np.arange(1, 4, dtype=np.int32))
        seen = backend.Tensor.from_dlpack("probe", given.to_dlpack()).as_numpy().tolist()
        if seen != [1, 2, 3]:
            raise InputError(
                f"this Triton's Python backend cannot read the arrays of numpy {np.__version__} (1, 2, 3 came out as "
                f"{seen}): use a newer Triton, or an environment with numpy<2 and a pyarrow that takes it, such as 21"
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each of `requests`, whose rows are labelled together."""
        import triton_python_backend_utils as backend

        given = [backend.get_input_tensor_by_name(request, INPUT).as_numpy().ravel().tolist() for request in requests]
        arrays = self.label([image for images in given for image in images])
        responses, start = [], 0
        for images in given:
            here = slice(start, start + len(images))
            tensors = [backend.Tensor(name, array[here]) for name, array in arrays.items()]
            responses.append(backend.InferenceResponse(tensors))
            start = here.stop
        return responses

    def label(self, images: list[bytes]) -> dict[str, NDArray[Any]]:
        """The outputs by name, a row for each of `images`, one or more. On a CPU each core labels a part of them."""
        size = min(self._labeller.batch_size, -(-len(images) // self._threads))
        batches = to_batches(images, size, root=None, max_bytes=self._max_bytes)
        read = [self._labeller.read(batch) for batch in batches]
        table = pa.concat_tables(self._pool.map(self._labeller.label, read))
        return {name: _array(table[name].combine_chunks(), kind) for name, kind in self._outputs.items()}

    def close(self) -> None:
        self._pool.shutdown()
        self._labeller.model.read.close()


def _array(column: pa.Array, kind: str) -> NDArray[Any]:
    """A column with at least two axes, as Triton takes it: null texts are empty, null numbers NaN."""
    if kind == "TYPE_STRING":
        texts = [(text or "").encode() for text in column.to_pylist()]
        return np.array(texts, dtype=np.object_).reshape(-1, 1)
    is_list = pa.types.is_fixed_size_list(column.type)
    array = np.full((len(column), column.type.list_size if is_list else 1), np.nan, np.float32)
    valid = column.drop_null()
    values = valid.flatten() if is_list else valid
    array[column.is_valid().to_numpy(zero_copy_only=False)] = values.to_numpy().reshape(-1, array.shape[1])
    return array
