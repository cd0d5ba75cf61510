"""The recipe of the embedded model runs and makes weights that clipbatch takes. How good: a report's affair."""

from pathlib import Path

import numpy as np

from tests.conftest import Cli, rows
from tests.support.corpus import photo
from train_demo_model import BATCH, NAME, WORDS, main


def test_a_step_of_the_recipe_makes_weights_that_a_run_takes(cli: Cli, photos: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, each in (("train", BATCH // len(WORDS) + 1), ("test", 1)):
        for name, *_ in WORDS:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(each):
                photo(rng, 32, 32).save(tmp_path / split / name / f"{number}.jpg")
    main(["--data", str(tmp_path), "--out", str(tmp_path / "made"), "--epochs", "1"])
    weights = tmp_path / "made" / f"{NAME}.safetensors"
    settings = ("--labels", "cifar10", "--model", "clipbatch-demo", "--pretrained", weights, "--limit", 4)
    cli("run", photos, *settings, "--out", tmp_path / "out")
    assert rows(tmp_path / "out")["status"].to_pylist() == ["ok"] * 4
    assert np.isfinite(rows(tmp_path / "out")["score"].to_numpy()).all()
