"""The process that loads a model to export it: `python -m clipbatch.tools.export.export_main REQUEST`.

REQUEST is a file that holds a `Request` as JSON. This process writes the files that the request names and sends one
message, an `Answer`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from clipbatch.config import from_flat
from clipbatch.config.labels import LabelSet
from clipbatch.rundir import features
from clipbatch.stages.encode import load, text_features
from clipbatch.stages.encode.onnx_export import export_onnx
from clipbatch.stages.pipeline import scoring
from clipbatch.tools.export.request import Answer, Request
from clipbatch.workers.child import Parent, serve


def main() -> None:
    request: Request = json.loads(Path(sys.argv[1]).read_text())

    def export(parent: Parent) -> None:
        settings = from_flat(request["settings"])
        model = load(settings.model)
        facts = model.facts()
        answer = Answer(facts=facts, score=scoring(settings, facts))
        if request["text"] and request["labels"]:
            text_LD = text_features(model, LabelSet.from_identity(request["labels"]).prompts)
            content = features.npy_bytes(text_LD)
            Path(request["text"]).write_bytes(content)
            answer |= Answer(text_sha256=hashlib.sha256(content).hexdigest(), embedding=text_LD.shape[1])
        if request["onnx"]:
            made = export_onnx(
                model, Path(request["onnx"]), precision=request["precision"], batch_size=request["batch_size"]
            )
            answer |= Answer(opset=made.opset, embedding=made.embedding, worst_cosine=made.worst_cosine)
        parent.send(answer)

    serve(export)


if __name__ == "__main__":
    main()
