"""The same scores, whatever the batch size, within what docs/explanation/accuracy.md states."""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-3)])
def test_scores_agree_across_batch_sizes(warm: Cli, tmp_path: Path, precision: str, tolerance: float) -> None:
    make_folder(tmp_path / "in", 200, seed=8, bad_fraction=0.1)
    found = []
    for size in (1, 16, 128):
        out = tmp_path / str(size)
        sizes = ("--batch-size", size, "--shard-size", 128, "--precision", precision)
        warm("run", tmp_path / "in", *DEMO, *sizes, "--out", out)
        found.append(rows(out))
    first, *others = found
    ok = np.array(first["status"].to_pylist()) == "ok"
    scores = np.array(first.filter(ok)["scores"].to_pylist())
    for other in others:
        assert other["status"].equals(first["status"])
        assert np.abs(np.array(other.filter(ok)["scores"].to_pylist()) - scores).max() <= tolerance
