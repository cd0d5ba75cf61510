"""The process that encodes prompts: `python -m clipbatch.tools.evaluate.features_main RUN FOLDER`.

Takes one line, a JSON list with the prompts of each label set, and leaves FOLDER/0.npy and so on, the label features of
each, by the model that RUN was made with. Then it sends how many there are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from clipbatch.rundir import features
from clipbatch.rundir.layout import RunDir
from clipbatch.stages.encode import text_features
from clipbatch.stages.pipeline import load_the_same
from clipbatch.workers.child import Parent, serve


def main() -> None:
    path, folder = sys.argv[1:]

    def encode(parent: Parent) -> None:
        run = RunDir(path)
        sets = next(iter(parent.messages()))
        model = load_the_same(run.plan().run_settings(), run.model_facts() or {})
        for number, prompts in enumerate(sets):
            (Path(folder) / f"{number}.npy").write_bytes(features.npy_bytes(text_features(model, prompts)))
        parent.send(len(sets))

    serve(encode)


if __name__ == "__main__":
    main()
