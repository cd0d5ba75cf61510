"""The process that downloads a model: `python -m clipbatch.tools.models_main MODEL PRETRAINED`.

PRETRAINED may be empty. The process loads the model as a run would, which downloads what is missing: weights,
configuration, tokenizer. So a model that it reports can be loaded.
"""

from __future__ import annotations

import sys

from huggingface_hub import constants

from clipbatch.config import ModelSettings
from clipbatch.stages.encode import load
from clipbatch.workers.child import Parent, serve


def main() -> None:
    model, pretrained = sys.argv[1:]

    def fetch(parent: Parent) -> None:
        loaded = load(ModelSettings(model=model, pretrained=pretrained or None))
        in_cache = loaded.weights.is_relative_to(constants.HF_HUB_CACHE)
        parent.send(
            {
                "weights": str(loaded.weights),
                "bytes": loaded.weights.stat().st_size,
                "sha256": loaded.weights_sha256,
                "cache": constants.HF_HUB_CACHE if in_cache else None,
            }
        )

    serve(fetch)


if __name__ == "__main__":
    main()
