"""Fuzzed images of every format through real runs: every file is one row, and healthy neighbours keep their scores."""

from pathlib import Path

import pytest

from tests.faults.fuzz import fuzz, lines
from tests.faults.mutations import fuzzed, seeds

IMAGES = 600


def test_one_seed_gives_the_same_files() -> None:
    one, other = seeds(), seeds()
    assert [fuzzed(number, 1, one) for number in range(200)] == [fuzzed(number, 1, other) for number in range(200)]


@pytest.mark.parametrize("decoder", ["auto", "dali"])
def test_fuzzed_images_become_rows_and_leave_their_neighbours_alone(tmp_path: Path, decoder: str) -> None:
    tally = fuzz(IMAGES, tmp_path / "work", decoder=decoder, seed=1)
    assert tally.broken == [], lines(tally)
    assert (tally.images, tally.runs_lost, tally.rows_lost, tally.rows_doubled) == (IMAGES, 0, 0, 0)
    assert (tally.witnesses, tally.witnesses_harmed) == (IMAGES // 10, 0)
