"""The limits on an image's pixels and bytes act on every kind of image, to the pixel and byte, in whole runs.

Those on time have their tests beside the faults that they are for: test_reads.py (--read-timeout) and test_workers.py
(--decode-timeout, --worker-timeout).
"""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import photo

WIDTH, HEIGHT = 100, 80
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF"}


@pytest.mark.parametrize("decoder", ["auto", "dali"])
def test_an_image_over_a_limit_is_too_large_and_its_neighbours_at_the_limit_are_not(
    cli: Cli, tmp_path: Path, decoder: str
) -> None:
    folder, rng = tmp_path / "in", np.random.default_rng(5)
    folder.mkdir()
    for suffix, kind in KINDS.items():
        for name, height in (("1-at", HEIGHT), ("2-over", HEIGHT + 1)):
            photo(rng, WIDTH, height).save(folder / f"{suffix}-{name}.{suffix}", kind)
    most = max(path.stat().st_size for path in folder.iterdir())
    small = (folder / "bmp-1-at.bmp").read_bytes()
    for name, size in (("at", most), ("over", most + 1)):
        (folder / f"bytes-{name}.bmp").write_bytes(small.ljust(size, b"\0"))
    command = ("run", folder, *DEMO, "--decoder", decoder)
    cli(*command, "--out", tmp_path / "free")
    limits = ("--max-pixels", WIDTH * HEIGHT, "--max-bytes", most)
    cli(*command, *limits, "--out", tmp_path / "out")
    free, found = rows(tmp_path / "free"), rows(tmp_path / "out")
    assert set(free["status"].to_pylist()) == {"ok"}
    at = np.array(["-at." in uri for uri in found["uri"].to_pylist()])
    assert found.filter(at).to_pylist() == free.filter(at).to_pylist()
    pixels = f"{WIDTH} x {HEIGHT + 1} pixels, over the limit of {WIDTH * HEIGHT}"
    wanted = {f"{most + 1} bytes, over the limit of {most}": 1, pixels: len(KINDS)}
    over = found.filter(~at).to_pylist()
    assert [row["status"] for row in over] == ["too_large"] * (len(KINDS) + 1)
    assert {error: [row["error"] for row in over].count(error) for error in wanted} == wanted
