"""The process that fetches a model: `python -m clipbatch.tools.models_main MODEL PRETRAINED`.

PRETRAINED is empty for none.

Loads it as a run would, which fetches what is not here yet: weights, configuration, tokenizer. So what it reports as
fetched has been seen to load.
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
        made = load(ModelSettings(model=model, pretrained=pretrained or None))
        in_cache = made.weights.is_relative_to(constants.HF_HUB_CACHE)
        parent.send(
            {
                "weights": str(made.weights),
                "bytes": made.weights.stat().st_size,
                "sha256": made.weights_sha256,
                "cache": constants.HF_HUB_CACHE if in_cache else None,
            }
        )

    serve(fetch)


if __name__ == "__main__":
    main()
