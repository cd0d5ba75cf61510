"""The texts of a Triton model repository. Pure: knows nothing of where they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipbatch import __version__
from clipbatch.config import Settings
from clipbatch.config.labels import LabelSet

# Microseconds for which a batch waits for further images, as `clipbatch serve` waits.
QUEUE_DELAY_US = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """An output of the model."""

    name: str
    # As Triton names data types.
    kind: str
    # Values for an image.
    length: int
    # Names its values, one a line.
    label_file: str | None = None


MODEL = '''\
"""What Triton's Python backend runs. Needs clipbatch in the execution environment (README.md)."""


class TritonPythonModel:
    """Called by Triton, in a process for each instance."""

    def initialize(self, args):
        from clipbatch.serving.triton_model import TritonModel

        TritonModel.check_backend()
        self._model = TritonModel(args)

    def execute(self, requests):
        return self._model.execute(requests)

    def finalize(self):
        self._model.close()
'''

_CONFIG = """\
# Written by clipbatch {version}.
name: "{name}"
backend: "python"
max_batch_size: {batch_size}
input [ {{ name: "image" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [
{outputs}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
instance_group [ {{ {group} }} ]
"""


def config(name: str, outputs: Sequence[Output], *, device: str, batch_size: int, instances: int) -> str:
    """`config.pbtxt`. device: as of a run: `cuda` is every GPU that Triton sees, `cuda:N` one of them."""
    kind, _, number = device.partition(":")
    group = f"kind: {'KIND_GPU' if kind == 'cuda' else 'KIND_CPU'} count: {instances}"
    group += f" gpus: [ {number} ]" if number else ""
    lines = []
    for output in outputs:
        labels = f' label_filename: "{output.label_file}"' if output.label_file else ""
        lines.append(f'  {{ name: "{output.name}" data_type: {output.kind} dims: [ {output.length} ]{labels} }}')
    return _CONFIG.format(
        version=__version__,
        name=name,
        batch_size=batch_size,
        outputs=",\n".join(lines),
        delay=QUEUE_DELAY_US,
        group=group,
    )


_README = """\
# {name}: image labels, as clipbatch makes them

Written by clipbatch {version}: the model {model}{pretrained},
{labels} labels, scores by {score}. The answers are those of `clipbatch run` with the same settings
(`1/clipbatch.json`).

## Serve it

Triton's Python backend starts a Python of its own for this model. That Python needs clipbatch {version} or later:

- in a container of Triton's: `pip install clipbatch` in an image made from it, or
- an environment of the same Python version as the backend's stub: start `tritonserver` with its `bin/` first in `PATH`.

Python backends before Triton 2.53 (24.12) may not read the arrays of numpy 2: the model then refuses to load. Install
`'numpy<2' 'pyarrow<22'` beside clipbatch there, or take a newer Triton.

The weights are not in this folder. The server finds them as `clipbatch run` does: {weights}.
It refuses weights with another digest than those of the export.

    tritonserver --model-repository FOLDER    # the folder above this one

Containers need shared memory for the images of a batch: `docker run --shm-size=1g`.

## Ask it

    pip install 'tritonclient[http]'
    python client.py a.jpg b.jpg

| tensor | type | for an image |
|---|---|---|
| `image` (input) | BYTES | an image file's bytes, as they are |
{rows}

An image that cannot be labelled has a `status` other than `ok`, an `error`, an empty label and NaN in place of numbers.
The others of its batch have their answers. A label that is empty beside the status `ok` is below the label set's
threshold. A request has up to {batch_size} images; Triton puts the requests of all clients together into batches.

## Change it

`instance_group` in `config.pbtxt` says how many processes answer, and on which device. Settings and labels are frozen:
export again for others.
"""
_MEANING = {
    "label": "the best label",
    "score": "its score",
    "scores": "the scores of all labels",
    "status": "`ok`, or what is wrong with the image",
    "error": "the reason in words, or empty",
    "embedding": "of unit length",
}
_TYPES = {"TYPE_STRING": "BYTES", "TYPE_FP32": "FP32"}


def readme(name: str, settings: Settings, labels: LabelSet, outputs: Sequence[Output], *, score: str) -> str:
    """`README.md`. score: how scores are made."""
    rows = []
    for output in outputs:
        length = f", {output.length} values" if output.length > 1 else ""
        group, _, what = output.name.rpartition("_")
        of_group = f" of the group {group}" if group else ""
        order = f" in the order of `{output.label_file}`" if output.label_file else ""
        rows.append(f"| `{output.name}` | {_TYPES[output.kind]} | {_MEANING[what]}{of_group}{length}{order} |")
    pretrained = settings.model.pretrained
    return _README.format(
        name=name,
        version=__version__,
        model=settings.model.model,
        pretrained=f" with the weights {pretrained}" if pretrained else "",
        labels=len(labels.names),
        score=score,
        weights=_where(settings.model.model, pretrained),
        rows="\n".join(rows),
        batch_size=settings.model.batch_size,
    )


def _where(model: str, pretrained: str | None) -> str:
    """Where the weights have to be."""
    if pretrained == "embedded":
        return "this model comes with clipbatch"
    if pretrained and "/" in pretrained and not pretrained.startswith("hf-hub:"):
        return f"the file {pretrained} has to be there"
    if model.startswith("local-dir:"):
        return f"the folder {model.removeprefix('local-dir:')} has to be there"
    return "in the hub's cache (`HF_HUB_CACHE`), where `clipbatch fetch` puts them"


_CLIENT = '''\
"""Label image files by Triton: python client.py [--url HOST:PORT] [--threads N] FILE... > rows.jsonl"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.http as triton

MODEL = "{name}"


def label(client, path):
    """A dict with the outputs for a file."""
    with open(path, "rb") as file:
        data = np.array([[file.read()]], dtype=np.object_)  # not np.bytes_, which cuts zeros off
    image = triton.InferInput("image", data.shape, "BYTES")
    image.set_data_from_numpy(data)
    answer = client.infer(MODEL, [image])
    row = {{"file": path}}
    for output in answer.get_response()["outputs"]:
        values = [v.decode() if isinstance(v, bytes) else float(v) for v in answer.as_numpy(output["name"])[0]]
        values = [None if v != v else v for v in values]  # NaN: there is none
        row[output["name"]] = values[0] if len(values) == 1 else None if values[0] is None else values
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    client = triton.InferenceServerClient(args.url, concurrency=args.threads)
    with ThreadPoolExecutor(args.threads) as pool:
        for row in pool.map(lambda path: label(client, path), args.files):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
'''


def client(name: str) -> str:
    """`client.py`."""
    return _CLIENT.format(name=name)
