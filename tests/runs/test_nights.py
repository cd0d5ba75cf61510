"""Ten nights with random changes: after each one, every image has a row with its latest state."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli
from tests.support.history import History, death, rows_of

SMALL = ("--batch-size", 4, "--shard-size", 4, "--incremental", "--json")


@pytest.mark.parametrize("seed", range(4))
def test_every_image_has_its_latest_row_after_each_night(warm: Cli, tmp_path: Path, seed: int) -> None:
    history = History(tmp_path, seed)
    command = ("run", history.input, *DEMO, *SMALL, *history.options, "--out", history.dataset)
    for night in range(10):
        history.day()
        before = history.labelled()
        if night < 9 and history.rng.random() < 0.3:
            death().during(history.dataset, history.rng.randrange(40), lambda: warm(*command))
        else:
            assert history.problems(json.loads(warm(*command).stdout)) == []
        assert history.note_names(before) == []
    again = json.loads(warm(*command).stdout)["increment"]
    assert (again["folder"], again["new"], again["changed"]) == (None, 0, 0)
    warm("run", history.input, *DEMO, "--out", tmp_path / "anew")
    last = history.last_rows()
    for row in rows_of(tmp_path / "anew"):
        assert last[row["uri"]]["label"] == row["label"]
        np.testing.assert_allclose(last[row["uri"]]["scores"] or [], row["scores"] or [], atol=1e-3)
