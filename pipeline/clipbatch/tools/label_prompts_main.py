"""The process that tokenizes prompts: `python -m clipbatch.tools.label_prompts_main MODEL PRETRAINED`.

PRETRAINED is empty for none. Takes one line, a JSON list of texts, and answers with an object: each text with what the
model reads of it, and whether it is cut off. Loads no weights.
"""

from __future__ import annotations

import sys

from clipbatch.config import ModelSettings
from clipbatch.stages.encode.model import load_tokenizer
from clipbatch.stages.encode.prompts import as_read
from clipbatch.workers.child import Parent, serve


def main() -> None:
    model, pretrained = sys.argv[1:]

    def tokenize(parent: Parent) -> None:
        texts = next(iter(parent.messages()))
        tokenizer = load_tokenizer(ModelSettings(model=model, pretrained=pretrained or None))
        parent.send({text: {"kept": kept, "is_cut": is_cut} for text, kept, is_cut in as_read(tokenizer, texts)})

    serve(tokenize)


if __name__ == "__main__":
    main()
