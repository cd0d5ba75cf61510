"""Random tables as people write them: read completely, or refused with a line number; rows are never lost silently."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.support.random_tables import outcome, write_case


@pytest.mark.parametrize("seed", range(4))
def test_random_tables_are_read_completely_or_refused_with_a_line_number(tmp_path: Path, seed: int) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(150):
        case = write_case(tmp_path, random.Random(f"test {seed}/{number}"))
        outcomes[outcome(case)] += 1
    assert outcomes["whole"] > 100  # so that refusing everything does not pass
